// Bench measures Mica and Debian's containerd in one run, alternately, with the same OCI runtime,
// network configuration, registry and kind of file system. It prints a table in Markdown.
//
//	bench -bin DIR [-rounds N] [-pulls N] [-pods N]
//
// Both get CRI calls from the kubelet's client. Each store is on a separate journaled ext4 in
// memory, so that neither the machine's disk nor the other store affects the results.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/internal/testimage"
)

// settings are the values of the flags.
type settings struct {
	bin    string
	rounds int // pods started, and commands run, by each peer
	pulls  int // pulls by each peer
	pods   int // running pods for the memory and restart rows
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	var s settings
	flag.StringVar(&s.bin, "bin", "bin", "directory of the built binaries")
	flag.IntVar(&s.rounds, "rounds", 50, "pods started by each, one at a time")
	flag.IntVar(&s.pulls, "pulls", 5, "pulls of the python image by each")
	flag.IntVar(&s.pods, "pods", 50, "running pods for the memory and restart rows")
	flag.Parse()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) (err error) {
	if err := buildImages(ctx); err != nil {
		return err
	}
	stage, err := newStage(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stage.close(context.WithoutCancel(ctx))) }()
	bin, err := filepath.Abs(s.bin)
	if err != nil {
		return err
	}
	mica, err := startMica(ctx, stage, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mica.stop(context.WithoutCancel(ctx))) }()
	containerd, err := startContainerd(ctx, stage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, containerd.stop(context.WithoutCancel(ctx))) }()
	rows, err := measure(ctx, s, mica, containerd)
	if err != nil {
		return err
	}
	printConditions(ctx, s)
	printTable(rows)
	return nil
}

func buildImages(ctx context.Context) error {
	dir, err := images.Dir()
	if err != nil {
		return err
	}
	root, err := images.ModuleRoot()
	if err != nil {
		return err
	}
	return images.Build(ctx, dir, root, append(images.Basic(), images.Python()), func(testimage.Built) {})
}
