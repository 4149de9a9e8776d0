package main

import (
	"context"
	"fmt"

	"github.com/micarun/mica/config"
)

func (t *tool) config(_ context.Context, args []string) error {
	what := ""
	if len(args) == 1 {
		what = args[0]
	}
	switch what {
	case "default":
		_, err := t.stdout.Write(config.DefaultFile())
		return err
	case "dump":
		c, err := config.Load(t.path)
		if err != nil {
			return err
		}
		text, err := c.Dump()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(t.stdout, "# Missing keys have the defaults shown by `mica config default`.\n\n%s", text)
		return err
	case "check":
		if _, err := config.Load(t.path); err != nil {
			// Each line already names a file or a key.
			fmt.Fprintln(t.stderr, err)
			return errQuiet
		}
		return nil
	}
	fmt.Fprintln(t.stderr, "Usage: mica config default|dump|check")
	return errUsage
}
