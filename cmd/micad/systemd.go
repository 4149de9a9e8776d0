package main

import (
	"context"
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/klog/v2"
)

// readyTimeout bounds the first answer on the daemon's own socket.
const readyTimeout = 10 * time.Second

// tellSystemd says that the daemon is ready once it has answered a call on its own
// socket, and keeps the watchdog quiet for as long as it goes on to do so. Without
// systemd it only takes the time.
func (d *daemon) tellSystemd(ctx context.Context) error {
	log := klog.FromContext(ctx)
	conn, err := grpc.NewClient("unix://"+d.config.CRI.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := answers(ctx, conn, readyTimeout); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("call own socket: %w", err)
	}
	took := time.Since(d.started)
	d.ready.Store(int64(took))
	log.Info("Ready", "socket", d.config.CRI.Socket, "streams", d.node.server.StreamAddress().String(), "took", took)
	notify(log, sd.SdNotifyReady)
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read watchdog interval: %w", err)
	}
	if interval == 0 {
		// Nobody asks again: the connection would only cost memory.
		_ = conn.Close()
		<-ctx.Done()
		return nil
	}
	ticks := time.NewTicker(interval / 3)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		if err := answers(ctx, conn, interval/3); err == nil {
			notify(log, sd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error(err, "The daemon does not answer on its own socket")
		}
	}
}

func answers(ctx context.Context, conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

// notify sends a state to systemd, if it started the daemon and waits for that.
func notify(log klog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Error(err, "Telling systemd", "state", state)
	}
}
