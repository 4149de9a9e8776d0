package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/micarun/mica/internal/admin"
)

// shortID is the number of digits of an ID in the output for people.
const shortID = 13

// eventFilter selects events and the output format.
type eventFilter struct {
	follow, running, json bool
	pod                   string
}

func (t *tool) events(ctx context.Context, args []string) error {
	var f eventFilter
	flags := t.flags("mica events")
	flags.BoolVar(&f.follow, "follow", false, "continue with new operations as they end")
	flags.BoolVar(&f.running, "running", false, "only running operations")
	flags.StringVar(&f.pod, "pod", "", "only events of this pod: a prefix of its ID, its `NAME`, or namespace/name")
	flags.BoolVar(&f.json, "json", false, "one JSON object a line")
	if err := t.parse(flags, args); err != nil {
		return err
	}
	if f.follow && f.running {
		fmt.Fprintln(t.stderr, "mica events: --follow and --running exclude each other")
		return errUsage
	}
	c, err := t.load()
	if err != nil {
		return err
	}
	if !f.follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askTimeout)
		defer cancel()
	}
	return admin.NewClient(c.AdminSocket()).Events(ctx, admin.EventsArgs{Follow: f.follow}, func(e admin.Event) error {
		if !f.wants(e) {
			return nil
		}
		if f.json {
			return json.NewEncoder(t.stdout).Encode(e)
		}
		_, err := fmt.Fprintln(t.stdout, line(e))
		return err
	})
}

func (f eventFilter) wants(e admin.Event) bool {
	if f.running && !e.Running {
		return false
	}
	if f.pod == "" || e.Pod != "" && strings.HasPrefix(e.Pod, f.pod) {
		return true
	}
	// The name is namespace/pod or namespace/pod/container.
	names := strings.Split(e.Name, "/")
	return len(names) > 1 && (names[1] == f.pod || names[0]+"/"+names[1] == f.pod)
}

// line formats an event for people: end time, operation, object, outcome, and the time of each
// stage.
func line(e admin.Event) string {
	end := e.Started.Add(seconds(e.Seconds))
	text := fmt.Sprintf("%s %s", end.Format("2006-01-02T15:04:05.000Z07:00"), e.What)
	if object := object(e); object != "" {
		text += " " + object
	}
	switch {
	case e.Running:
		text += ": running for " + rounded(e.Seconds) + waiting(e.Calls)
	case e.Error != "":
		text += ": failed after " + rounded(e.Seconds)
	case len(e.Stages) > 0:
		text += ": done in " + rounded(e.Seconds)
	}
	if stages := stages(e); stages != "" {
		text += " (" + stages + ")"
	}
	for _, more := range []string{e.Detail, e.Error} {
		if more != "" {
			text += ": " + strings.ReplaceAll(more, "\n", "; ")
		}
	}
	return text
}

// waiting says how many calls wait for the result, if any are known.
func waiting(calls int) string {
	switch calls {
	case 0:
		return ""
	case 1:
		return ", 1 call waits"
	}
	return fmt.Sprintf(", %d calls wait", calls)
}

func object(e admin.Event) string {
	id := e.Pod
	if e.Container != "" {
		id = e.Container
	}
	switch {
	case e.Image != "":
		return e.Image
	case id == "":
		return e.Name
	}
	return fmt.Sprintf("%s [%s]", e.Name, id[:min(len(id), shortID)])
}

// stages lists the stages with their times and marks the current or the failed one.
func stages(e admin.Event) string {
	var parts []string
	for i, s := range e.Stages {
		part := s.Name + " " + rounded(s.Seconds)
		if last := i == len(e.Stages)-1; last && e.Running {
			part = "now: " + part
		} else if last && e.Error != "" {
			part = "failed: " + part
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// rounded formats a duration with about three digits.
func rounded(s float64) string {
	d := seconds(s)
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}
