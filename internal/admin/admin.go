// Package admin is how the node tool speaks to a running daemon about the daemon
// itself: what it is, whether its stores are sound, that it shall end. Everything
// about pods and images goes through the CRI instead.
//
// It is HTTP with JSON on a unix socket that only root may open. Both ends are of
// one release, so there is no version negotiation: a path that one end does not
// know is an error that says so.
package admin

import (
	"context"
	"time"
)

// The paths of the API.
const (
	pathInfo  = "/info"
	pathCheck = "/check"
	pathStop  = "/stop"

	pathEvents = "/events"
)

// Info says what a daemon is.
type Info struct {
	Version    string    `json:"version"`
	Pid        int       `json:"pid"`
	Started    time.Time `json:"started"`
	ReadyAfter string    `json:"readyAfter"` // from the start of the process until the socket answered

	DataRoot string `json:"dataRoot"`
	StateDir string `json:"stateDir"`
	Socket   string `json:"socket"`
	Streams  string `json:"streams"`           // address of the streaming server
	Metrics  string `json:"metrics,omitempty"` // address of the metrics server

	Runtimes []Runtime `json:"runtimes"`
	Cgroups  string    `json:"cgroups"` // "v1 cgroupfs", "v2 systemd"
	// Clamped lists what the host does not let the daemon give to containers.
	Clamped []string `json:"clamped,omitempty"`
}

// Runtime is an OCI runtime that serves a RuntimeClass handler.
type Runtime struct {
	Handler string `json:"handler"` // "" is the default
	Path    string `json:"path"`
	Type    string `json:"type"`
}

// Problem is something that is not as it should be.
type Problem struct {
	Path string `json:"path"`
	What string `json:"what"`
}

// CheckArgs say how deep a check goes.
type CheckArgs struct {
	// Content reads every file of every layer and compares it with its digest, which
	// takes as long as reading the store.
	Content bool `json:"content"`
}

// StopArgs say what ends with the daemon.
type StopArgs struct {
	// Everything ends the keeper and removes the embedded network as well. It is
	// refused while there are pods or containers.
	Everything bool `json:"everything"`
}

// Event is an operation on a pod, a container or an image, or something that happened
// to one.
type Event struct {
	What      string `json:"what"` // "run pod", "container ended"
	Pod       string `json:"pod,omitempty"`
	Container string `json:"container,omitempty"`
	Image     string `json:"image,omitempty"`
	Name      string `json:"name,omitempty"` // namespace/pod[/container]

	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"` // so far, while it runs
	Running bool      `json:"running,omitempty"`
	Stages  []Stage   `json:"stages,omitempty"`
	Detail  string    `json:"detail,omitempty"`
	Error   string    `json:"error,omitempty"` // why it failed
}

// Stage is a part of an operation.
type Stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// EventsArgs say which events are told.
type EventsArgs struct {
	// Follow goes on with what happens until the client leaves.
	Follow bool
}

// Daemon is what the API asks of a daemon. The methods are called concurrently.
type Daemon interface {
	Info(ctx context.Context) (Info, error)
	// Check returns every problem found, which is no error.
	Check(ctx context.Context, args CheckArgs) ([]Problem, error)
	// Events calls tell with what the daemon did last, with what it is doing and, if
	// asked, with what it does until ctx ends. It ends with tell's error, if there
	// is one.
	Events(ctx context.Context, args EventsArgs, tell func(Event) error) error
	// Stop returns when the daemon has begun to end, or why it does not.
	Stop(ctx context.Context, args StopArgs) error
}
