package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/micarun/mica/internal/admin"
)

// askTimeout bounds requests that the daemon answers from memory.
const askTimeout = 10 * time.Second

func (t *tool) info(ctx context.Context, args []string) error {
	if err := t.parse(t.flags("mica info"), args); err != nil {
		return err
	}
	c, err := t.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := admin.NewClient(c.AdminSocket()).Info(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(t.stdout, 0, 0, 2, ' ', 0)
	for _, row := range infoRows(info) {
		if row[1] != "" {
			fmt.Fprintf(w, "%s:\t%s\n", row[0], row[1])
		}
	}
	return w.Flush()
}

func infoRows(i admin.Info) [][2]string {
	rows := [][2]string{
		{"version", i.Version},
		{"pid", fmt.Sprint(i.Pid)},
		{"started", fmt.Sprintf("%s, ready after %s", i.Started.Format(time.RFC3339), i.ReadyAfter)},
		{"data root", i.DataRoot},
		{"state directory", i.StateDir},
		{"CRI socket", i.Socket},
		{"streams", i.Streams},
		{"metrics", i.Metrics},
		{"cgroups", i.Cgroups},
	}
	for _, r := range i.Runtimes {
		name := "runtime " + r.Handler
		if r.Handler == "" {
			name = "default runtime"
		}
		rows = append(rows, [2]string{name, r.Path})
	}
	return append(rows, [2]string{"clamped by the host", strings.Join(i.Clamped, "; ")})
}
