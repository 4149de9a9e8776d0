package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// readyTimeout bounds the daemon's first call on its own socket.
const readyTimeout = 10 * time.Second

// notifyManager reports readiness to the service manager once the daemon has answered a call on its
// own socket. Then it feeds the watchdog for as long as the daemon answers, three times per
// watchdog interval, so that one slow answer does not kill the daemon. Without a service manager it
// only records the time until ready.
func (d *daemon) notifyManager(ctx context.Context) error {
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
	logNotifyError(log, d.manager.Ready(d.serving()))
	recovered := make(chan struct{})
	go func() {
		defer close(recovered)
		d.notifyRecovered(ctx)
	}()
	defer func() { <-recovered }()
	if d.manager.Watchdog == 0 {
		// There are no further calls; close the connection to save memory.
		_ = conn.Close()
		<-ctx.Done()
		return nil
	}
	d.feedWatchdog(ctx, conn)
	return nil
}

// feedWatchdog feeds the manager's watchdog for as long as the daemon works.
func (d *daemon) feedWatchdog(ctx context.Context, conn *grpc.ClientConn) {
	log := klog.FromContext(ctx)
	pause := d.manager.Watchdog / 3
	ticks := time.NewTicker(pause)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if err := works(ctx, conn, pause); err == nil {
			logNotifyError(log, d.manager.Alive())
		} else if ctx.Err() == nil {
			log.Error(err, "Call on the daemon's own socket failed, not feeding the watchdog")
		}
	}
}

// answers returns nil if the endpoint behind conn serves.
func answers(ctx context.Context, conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

// works returns nil if the daemon also looks up pods, containers and images. A daemon that answers
// health checks but hangs in these must be replaced. None of these calls waits for a registry, a
// plugin or a container.
func works(ctx context.Context, conn *grpc.ClientConn, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := answers(ctx, conn, timeout); err != nil {
		return err
	}
	const nothing = "mica.invalid/watchdog"
	containers := runtimeapi.NewRuntimeServiceClient(conn)
	if _, err := containers.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: nothing}}); err != nil {
		return err
	}
	if _, err := containers.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: nothing}}); err != nil {
		return err
	}
	_, err := runtimeapi.NewImageServiceClient(conn).ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: nothing}})
	return err
}

// notifyRecovered logs when all pods and containers are recovered, and updates the status at the
// service manager.
func (d *daemon) notifyRecovered(ctx context.Context) {
	log := klog.FromContext(ctx)
	select {
	case <-d.node.service.Recovered():
	case <-ctx.Done():
		return
	}
	log.Info("Recovered", "after", time.Since(d.started), "unusableRecords", d.node.service.UnusableRecords())
	logNotifyError(log, d.manager.Status(d.serving()))
}

// serving returns the daemon's status line for the service manager.
func (d *daemon) serving() string {
	text := "Serving CRI on " + d.config.CRI.Socket
	if left := d.node.service.Unfinished(); left != "" {
		text += "; " + left
	}
	return text
}

// logNotifyError logs a failure to notify the service manager. The daemon continues: if it matters,
// the manager kills the daemon.
func logNotifyError(log klog.Logger, err error) {
	if err != nil {
		log.Error(err, "Notifying the service manager failed")
	}
}
