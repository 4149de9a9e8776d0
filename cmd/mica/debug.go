package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/micarun/mica/internal/admin"
)

// defaultProfileTime is the default of --seconds.
const defaultProfileTime = 30

// profileArgs are the arguments of `mica debug profile`.
type profileArgs struct {
	admin.ProfileArgs
	output string // "" for a name that contains the kind, "-" for standard output
}

func (t *tool) debug(ctx context.Context, args []string) error {
	var a profileArgs
	flags := t.flags("mica debug profile")
	flags.IntVar(&a.Seconds, "seconds", defaultProfileTime, "how long to collect a profile of kind cpu or trace, at most 300")
	flags.StringVar(&a.output, "output", "", "`file` for the profile, - for standard output; default: mica-KIND.pprof or mica-trace.out")
	flags.Usage = func() {
		fmt.Fprintln(t.stderr, "Usage: mica debug profile cpu|heap|goroutine|trace [--seconds N] [--output FILE]")
		flags.PrintDefaults()
	}
	if len(args) > 0 && args[0] == "profile" {
		return t.profile(ctx, flags, &a, args[1:])
	}
	if err := t.parse(flags, args); err != nil {
		return err
	}
	flags.Usage()
	return errUsage
}

// profile writes a profile of the daemon to a file. Options may stand before or after the kind.
func (t *tool) profile(ctx context.Context, flags *flag.FlagSet, a *profileArgs, args []string) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if a.Kind = flags.Arg(0); !slices.Contains([]string{"cpu", "heap", "goroutine", "trace"}, a.Kind) {
		flags.Usage()
		return errUsage
	}
	if err := t.parse(flags, flags.Args()[1:]); err != nil {
		return err
	}
	c, err := t.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(a.Seconds)*time.Second+askTimeout)
	defer cancel()
	get := func(w io.Writer) error { return admin.NewClient(c.AdminSocket()).Profile(ctx, a.ProfileArgs, w) }
	if a.output == "-" {
		return get(t.stdout)
	}
	viewer, name := "pprof", "mica-"+a.Kind+".pprof"
	if a.Kind == "trace" {
		viewer, name = "trace", "mica-trace.out"
	}
	a.output = cmp.Or(a.output, name)
	if err := writeFile(a.output, get); err != nil {
		return err
	}
	fmt.Fprintf(t.stderr, "mica: wrote %[2]s; to view it: go tool %[1]s %[2]s\n", viewer, a.output)
	return nil
}

// writeFile replaces the file at path by a private one that write fills. After an error, an older
// file is unchanged.
func writeFile(path string, write func(io.Writer) error) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".mica-profile-")
	if err != nil {
		return err
	}
	if err = errors.Join(write(file), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}
