package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/internal/admin"
	"github.com/micarun/mica/internal/sdnotify"
	"github.com/micarun/mica/internal/unixsock"
	"github.com/micarun/mica/internal/version"
)

const (
	// startTimeout bounds the start, up to the first answered call.
	startTimeout = 2 * time.Minute
	// closeTimeout bounds the shutdown after the last call.
	closeTimeout = 30 * time.Second
)

// daemon is one run of micad.
type daemon struct {
	path    string        // configuration file
	config  config.Config // resolved
	started time.Time
	level   func(int) // sets the log level
	stop    func()    // makes run return
	hangups chan os.Signal
	manager sdnotify.Manager // the service manager, if there is one
	node    *node

	ready      atomic.Int64 // nanoseconds from started until the socket answered; 0 before
	everything atomic.Bool  // end the keeper and remove the network as well
}

// run opens the node, serves it until ctx ends, and closes it.
func (d *daemon) run(ctx context.Context) error {
	log := klog.FromContext(ctx)
	log.Info("Starting", "version", version.String(), "pid", os.Getpid(), "dataRoot", d.config.DataRoot, "stateDir", d.config.StateDir)
	var err error
	if d.node, err = d.open(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	serveErr := d.serve(ctx)
	logNotifyError(log, d.manager.Stopping())
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(serveErr, d.close(closing))
}

func (d *daemon) open(ctx context.Context) (*node, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return open(ctx, d.config)
}

func (d *daemon) close(ctx context.Context) error {
	if d.everything.Load() {
		return d.node.endEverything(ctx)
	}
	return d.node.close(ctx)
}

// serve runs the CRI, metrics and admin endpoints until ctx ends or one of them fails.
func (d *daemon) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sock, err := unixsock.Listen(ctx, unixsock.Args{Path: d.config.AdminSocket(), Mode: 0o600})
	if err != nil {
		return fmt.Errorf("serve admin requests: %w", err)
	}
	metricsListener, err := listenMetrics(d.config.Metrics.Address)
	if err != nil {
		return errors.Join(fmt.Errorf("serve metrics: %w", err), sock.Close())
	}
	parts := map[string]func(context.Context) error{
		"CRI":     d.node.server.Serve,
		"admin":   func(ctx context.Context) error { return admin.Serve(ctx, sock, d) },
		"metrics": func(ctx context.Context) error { return serveMetrics(ctx, metricsListener, d.node.registry()) },
		"reload":  d.reloadOnSignal,
		"manager": d.notifyManager,
		"memory":  d.node.memory.releaseWhenQuiet,
	}
	ended := make(chan error, len(parts))
	for name, serve := range parts {
		go func() {
			err := serve(ctx)
			if err != nil {
				err = fmt.Errorf("serve %s: %w", name, err)
			}
			cancel() // ends the other parts
			ended <- err
		}()
	}
	var errs error
	for range parts {
		errs = errors.Join(errs, <-ended)
	}
	return errs
}

// reloadOnSignal reloads the configuration at each SIGHUP and applies the settings that can change
// in a running daemon: the log level, and all of [images].
func (d *daemon) reloadOnSignal(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.hangups:
			d.reload(ctx)
		}
	}
}

func (d *daemon) reload(ctx context.Context) {
	log := klog.FromContext(ctx)
	if d.ready.Load() != 0 { // before the first Ready, the manager expects no reload
		logNotifyError(log, d.manager.Reloading())
		defer func() { logNotifyError(log, d.manager.Ready(d.serving())) }()
	}
	c, err := config.Load(d.path)
	if err != nil {
		log.Error(err, "Reloading configuration failed")
		return
	}
	next := d.config
	next.Log.Level, next.Images = c.Log.Level, c.Resolved().Images
	if err := d.node.images.Reload(next.Images); err != nil {
		log.Error(err, "Reloading configuration failed")
		return
	}
	d.level(c.Log.Level)
	changed := config.Changes(d.config, next)
	d.config.Log.Level, d.config.Images = next.Log.Level, next.Images
	log.Info("Configuration reloaded", "changed", changed, "restartNeeded", config.Changes(d.config, c.Resolved()))
}

// Info implements admin.Daemon.
func (d *daemon) Info(context.Context) (admin.Info, error) {
	n := d.node
	return admin.Info{
		Version:    version.String(),
		Pid:        os.Getpid(),
		Started:    d.started,
		ReadyAfter: time.Duration(d.ready.Load()).String(),
		DataRoot:   d.config.DataRoot,
		StateDir:   d.config.StateDir,
		Socket:     d.config.CRI.Socket,
		Streams:    n.server.StreamAddress().String(),
		Metrics:    d.config.Metrics.Address,
		Runtimes:   n.handlers(),
		Cgroups:    n.cgroupMode(),
		Clamped:    clamped(n.host),
	}, nil
}

// Check implements admin.Daemon.
func (d *daemon) Check(ctx context.Context, args admin.CheckArgs) ([]admin.Problem, error) {
	return d.node.check(ctx, args)
}

// Stop implements admin.Daemon.
func (d *daemon) Stop(ctx context.Context, args admin.StopArgs) error {
	if args.Everything {
		if err := d.node.requireEmpty(ctx); err != nil {
			return err
		}
		d.everything.Store(true)
	}
	d.stop()
	return nil
}
