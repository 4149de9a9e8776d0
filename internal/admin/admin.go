// Package admin is the protocol by which the node tool queries and controls a running daemon: its
// state, its operations, checks of its stores, profiles, and stopping it. Pods and images are managed
// through the CRI instead.
//
// It is HTTP with JSON on a unix socket that only root may open. Both ends come from the same
// release, so there is no version negotiation; an unknown path is an error.
package admin

import (
	"context"
	"io"
	"time"
)

// The paths of the API.
const (
	pathInfo  = "/info"
	pathCheck = "/check"
	pathStop  = "/stop"

	pathEvents  = "/events"
	pathProfile = "/profile"
)

// Info describes a running daemon.
type Info struct {
	Version    string    `json:"version"`
	Pid        int       `json:"pid"`
	Started    time.Time `json:"started"`
	ReadyAfter string    `json:"readyAfter"` // time from process start until the socket answered

	DataRoot string `json:"dataRoot"`
	StateDir string `json:"stateDir"`
	Socket   string `json:"socket"`
	Streams  string `json:"streams"`           // address of the streaming server
	Metrics  string `json:"metrics,omitempty"` // address of the metrics server

	Runtimes []Runtime `json:"runtimes"`
	Cgroups  string    `json:"cgroups"` // "v1 cgroupfs", "v2 systemd"
	// Clamped lists the privileges that the host keeps the daemon from giving to containers.
	Clamped []string `json:"clamped,omitempty"`
}

// Runtime is an OCI runtime that serves a RuntimeClass handler.
type Runtime struct {
	Handler string `json:"handler"` // "" is the default
	Path    string `json:"path"`
	Type    string `json:"type"`
}

// Problem is one finding of a check: damage or a leftover.
type Problem struct {
	Path string `json:"path"`
	What string `json:"what"`
}

// CheckArgs selects the depth of a check.
type CheckArgs struct {
	// Content also compares every file of every layer with its digest, which takes as long as
	// reading the whole store.
	Content bool `json:"content"`
}

// StopArgs selects what ends with the daemon.
type StopArgs struct {
	// Everything also ends the keeper and removes the embedded network. The daemon rejects it while
	// there are pods or containers.
	Everything bool `json:"everything"`
}

// Event is an operation on a pod, a container or an image, or an event without duration, such as a
// container's exit.
type Event struct {
	What      string `json:"what"` // "run pod", "container ended"
	Pod       string `json:"pod,omitempty"`
	Container string `json:"container,omitempty"`
	Image     string `json:"image,omitempty"`
	Name      string `json:"name,omitempty"` // namespace/pod[/container]

	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"` // time so far, while the operation runs
	Running bool      `json:"running,omitempty"`
	Calls   int       `json:"calls,omitempty"` // that wait for the result of a running creation
	Stages  []Stage   `json:"stages,omitempty"`
	Detail  string    `json:"detail,omitempty"`
	Error   string    `json:"error,omitempty"` // of a failed operation
}

// Stage is one stage of an operation.
type Stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// EventsArgs selects events.
type EventsArgs struct {
	// Follow continues with new events until the client disconnects.
	Follow bool
}

// ProfileArgs selects a profile of the daemon's process.
type ProfileArgs struct {
	// Kind is cpu, heap, goroutine or trace.
	Kind string `json:"kind"`
	// Seconds is how long a profile of kind cpu or trace is collected.
	Seconds int `json:"seconds"`
}

// Daemon is the daemon behind the API. Its methods must be safe for concurrent use.
type Daemon interface {
	Info(ctx context.Context) (Info, error)
	// Check returns the problems found. Problems are not an error.
	Check(ctx context.Context, args CheckArgs) ([]Problem, error)
	// Events calls emit for each recent and each running operation, and with args.Follow for later
	// ones until ctx ends. It returns emit's error, if there is one.
	Events(ctx context.Context, args EventsArgs, emit func(Event) error) error
	// Profile writes a profile to w, in the format of `go tool pprof` or `go tool trace`. When ctx
	// ends or w returns an error, it ends early. It returns an error before it has written anything
	// if args are invalid or another profile of this kind is being collected.
	Profile(ctx context.Context, args ProfileArgs, w io.Writer) error
	// Stop begins to stop the daemon and returns, or returns why it cannot stop.
	Stop(ctx context.Context, args StopArgs) error
}
