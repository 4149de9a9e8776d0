// Bench measures Mica and Debian's containerd in one run, alternately, with the same OCI runtime,
// network configuration, registry and kind of file system. It prints a table in Markdown, and with
// -out writes it as JSON, with charts.
//
//	bench -bin DIR [-rounds N] [-pulls N] [-pods N] [-parts LIST]
//
// With -against DIR it compares with another build of Mica instead, to measure a change. Both then
// use the embedded network, and -runtime names their OCI runtime.
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
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/micarun/mica/e2e/images"
	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/testcgroup"
	"github.com/micarun/mica/internal/testimage"
)

// settings are the values of the flags.
type settings struct {
	bin    string
	rounds int // pods started, and commands run, by each peer
	pulls  int // pulls by each peer
	pods   int // running pods for the memory, restart and statistics rows

	against string   // directory of another build of Mica; "" compares with containerd
	runtime string   // OCI runtime of both builds, "" for the daemon's choice
	parts   []string // names of the measurements, in their order
	out     string   // directory of results.json and the charts, "" for none
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	klog.SetLogger(klog.Logger{}) // the CRI client logs every error that it returns
	var s settings
	flag.StringVar(&s.bin, "bin", "bin", "directory of the built binaries")
	flag.IntVar(&s.rounds, "rounds", 40, "pods started by each, one at a time")
	flag.IntVar(&s.pulls, "pulls", 5, "pulls of the python image by each")
	flag.IntVar(&s.pods, "pods", 50, "running pods for the memory, restart and statistics rows")
	flag.StringVar(&s.against, "against", "", "directory of another build of Mica to compare with, instead of containerd")
	flag.StringVar(&s.runtime, "runtime", "", "OCI runtime for -against, runc or crun")
	parts := flag.String("parts", "pulls,pods,calls,host network,execs,workers,logs,crowd,stats,idle", "what to measure")
	flag.StringVar(&s.out, "out", "", "directory for the result as JSON and charts")
	flag.Parse()
	s.parts = strings.Split(*parts, ",")
	if strings.Contains(filepath.Base(s.runtime), "crun") && testcgroup.Hybrid() {
		fmt.Fprintln(os.Stderr, "bench:", testcgroup.Enter())
		os.Exit(1)
	}
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
	args := micaArgs{name: "Mica", bin: bin, slot: stage.slot, confDir: stage.confDir}
	if s.against != "" {
		args.confDir, args.runtime = "", s.runtime
	}
	mica, err := startMica(ctx, stage, args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mica.stop(context.WithoutCancel(ctx))) }()
	other, err := startOther(ctx, stage, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, other.stop(context.WithoutCancel(ctx))) }()
	rows, err := measure(ctx, s, mica, other)
	if err != nil {
		return err
	}
	about := conditions(ctx, s)
	fmt.Print(about, "\n\n")
	printTable(other.name, rows)
	if s.out == "" {
		return nil
	}
	return resultOf(s, about, []*peer{mica, other}, rows).write(s.out)
}

// startOther starts the peer that Mica is compared with.
func startOther(ctx context.Context, stage *stage, s settings) (*peer, error) {
	if s.against == "" {
		return startContainerd(ctx, stage)
	}
	bin, err := filepath.Abs(s.against)
	if err != nil {
		return nil, err
	}
	slot, err := node.TakeSlot(ctx)
	if err != nil {
		return nil, err
	}
	other, err := startMica(ctx, stage, micaArgs{name: "other build", bin: bin, slot: slot, runtime: s.runtime})
	if err != nil {
		return nil, errors.Join(err, slot.Release())
	}
	stop := other.stop
	other.stop = func(ctx context.Context) error { return errors.Join(stop(ctx), slot.Release()) }
	return other, nil
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
	return images.Build(ctx, dir, root, append(images.Basic(), images.Pythons()...), func(testimage.Built) {})
}
