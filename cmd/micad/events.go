package main

import (
	"context"

	"github.com/micarun/mica/internal/admin"
	"github.com/micarun/mica/internal/operations"
)

// Events implements admin.Daemon.
func (d *daemon) Events(ctx context.Context, args admin.EventsArgs, emit func(admin.Event) error) error {
	emitEntry := func(e operations.Entry) error { return emit(asEvent(e)) }
	j := d.node.operations
	if args.Follow {
		return j.Follow(ctx, emitEntry)
	}
	for _, e := range append(j.Ended(), j.Running()...) {
		if err := emitEntry(e); err != nil {
			return err
		}
	}
	return nil
}

func asEvent(e operations.Entry) admin.Event {
	event := admin.Event{
		What: e.What, Pod: e.Pod, Container: e.Container, Image: e.Image, Name: e.Name,
		Started: e.Started, Seconds: e.Took.Seconds(), Running: e.Running, Calls: e.Calls, Detail: e.Detail,
	}
	for _, s := range e.Stages {
		event.Stages = append(event.Stages, admin.Stage{Name: s.Name, Seconds: s.Took.Seconds()})
	}
	if e.Err != nil {
		event.Error = e.Err.Error()
	}
	return event
}
