package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/internal/admin"
)

const (
	// podTimeout bounds the removal of one pod: grace period and tear-down.
	podTimeout = 2 * time.Minute
	// podsAtOnce is the number of pods that are removed concurrently.
	podsAtOnce = 16
	// goneTimeout bounds the request to stop and the daemon's exit.
	goneTimeout = 60 * time.Second
	// pollInterval is how often the wait for the exit checks for an interrupt.
	pollInterval = 200 * time.Millisecond
	// maxAnswer is the default maximum message size of the daemon's CRI endpoint.
	maxAnswer = 32 << 20
)

func (t *tool) stop(ctx context.Context, args []string) error {
	flags := t.flags("mica stop")
	all := flags.Bool("all", false, "remove all pods, and end the keeper and the embedded network, too")
	keeper := flags.Bool("keeper", false, "end the keeper and the embedded network, too, unless there are pods")
	if err := t.parse(flags, args); err != nil {
		return err
	}
	c, err := t.load()
	if err != nil {
		return err
	}
	if *all {
		if err := removePods(ctx, c.CRI.Socket); err != nil {
			return fmt.Errorf("remove pods: %w", err)
		}
	}
	return stopDaemon(ctx, admin.NewClient(c.AdminSocket()), admin.StopArgs{Everything: *all || *keeper})
}

// removePods stops and removes every pod with its containers.
func removePods(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	listing, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	pods, err := client.ListPodSandbox(listing, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var work errgroup.Group
	work.SetLimit(podsAtOnce)
	for _, pod := range pods.GetItems() {
		work.Go(func() error { return removePod(ctx, client, pod.GetId()) })
	}
	return work.Wait()
}

func removePod(ctx context.Context, client runtimeapi.RuntimeServiceClient, id string) error {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	if _, err := client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	if _, err := client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

// stopDaemon stops the daemon and waits until it has exited.
func stopDaemon(ctx context.Context, client *admin.Client, args admin.StopArgs) error {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	info, err := client.Info(ctx)
	if err != nil {
		return err
	}
	// The pidfd refers to this process even if its PID is reused.
	process, err := unix.PidfdOpen(info.Pid, 0)
	if err != nil {
		return fmt.Errorf("find daemon %d: %w", info.Pid, err)
	}
	defer func() { _ = unix.Close(process) }()
	if err := client.Stop(ctx, args); err != nil {
		return err
	}
	for {
		fds := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(pollInterval.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for daemon %d: %w", info.Pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("wait for daemon %d: %w", info.Pid, ctx.Err())
		}
	}
}
