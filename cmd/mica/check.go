package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/config"
	"github.com/micarun/mica/imageservice"
	"github.com/micarun/mica/internal/admin"
	"github.com/micarun/mica/overlay"
	"github.com/micarun/mica/runtimeservice"
	"github.com/micarun/mica/runtimeservice/cgroup"
)

// A check reads directories; with --content it reads every byte of the store.
const (
	checkTimeout   = 2 * time.Minute
	contentTimeout = 2 * time.Hour
)

func (t *tool) check(ctx context.Context, args []string) error {
	var a admin.CheckArgs
	flags := t.flags("mica check")
	flags.BoolVar(&a.Content, "content", false, "read all layers and compare them with their digests")
	if err := t.parse(flags, args); err != nil {
		return err
	}
	c, err := t.load()
	if err != nil {
		return err
	}
	timeout := checkTimeout
	if a.Content {
		timeout = contentTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	problems, err := admin.NewClient(c.AdminSocket()).Check(ctx, a)
	if errdefs.IsUnavailable(err) {
		fmt.Fprintln(t.stderr, "mica: the daemon is not running: checking everything except processes")
		problems, err = checkOffline(ctx, c, a)
	}
	for _, p := range problems {
		fmt.Fprintf(t.stdout, "%s: %s\n", p.Path, p.What)
	}
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if len(problems) > 0 {
		return errQuiet
	}
	return nil
}

// checkOffline checks the node without a daemon. Like every start of the daemon, it first removes
// incomplete layers.
func checkOffline(ctx context.Context, c config.Config, a admin.CheckArgs) (problems []admin.Problem, err error) {
	ctx = klog.NewContext(ctx, klog.Background().V(1))
	layers, err := overlay.Open(ctx, c.Overlay())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, layers.Close()) }()
	if err := layers.SweepAbandoned(ctx); err != nil {
		return nil, err
	}
	images, err := imageservice.Open(ctx, c.Images, layers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	for _, check := range []func() ([]overlay.Problem, error){
		func() ([]overlay.Problem, error) {
			return layers.Check(ctx, overlay.CheckOptions{Content: a.Content})
		},
		func() ([]overlay.Problem, error) { return images.Check(ctx) },
		func() ([]overlay.Problem, error) { return checkRecords(ctx, c, layers) },
	} {
		found, checkErr := check()
		err = errors.Join(err, checkErr)
		for _, p := range found {
			problems = append(problems, admin.Problem{Path: p.Path, What: p.What})
		}
	}
	return problems, err
}

func checkRecords(ctx context.Context, c config.Config, layers *overlay.Store) ([]overlay.Problem, error) {
	mode, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	cgroups, err := cgroup.New(mode, c.Cgroups)
	if err != nil {
		return nil, err
	}
	return runtimeservice.CheckRecords(ctx, runtimeservice.CheckArgs{Options: c.Pods, Layers: layers, Cgroups: cgroups, Network: c.Network})
}
