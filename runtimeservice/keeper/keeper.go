// Package keeper is the daemon's client for mica-keeper. One mica-keeper runs per node. It is the
// parent of every container, holds the container's stdio, writes the CRI log and records the exit.
//
// [Connect] finds the keeper of a state directory and starts one if none answers. Client and keeper
// exchange messages over a unix seqpacket socket (package wire). The [Client] stores copies of
// every container's descriptors. When the keeper dies, the Client starts another one and sends the
// copies to it; callers notice only a delay. Package server is the keeper itself. This package does
// not import it.
//
// This package is not a container runtime: the keeper runs one. It has no notion of pods, images or
// CRI records. The caller decides what follows from a container's exit.
//
// Types without a statement about concurrent use are plain data: they must not be changed while
// another goroutine uses them.
//
// Files, all in Options.Dir, which should be on a tmpfs:
//
//	lock                 flock of the running keeper
//	keeper.sock          its socket, mode 0600
//	keeper.log           its log
//	<id>/container.json  what the next keeper must know about a container
//	<id>/exit.json       the exit record, until Delete
//
// Invariants:
//
//   - A Client reports the exit of each container exactly once.
//   - Each line of a container's output is written to its log exactly once, even if daemon or
//     keeper is killed at any instant, as long as one of the two survives. Output of a terminal is
//     an exception: what one read returned may be lost.
package keeper

import (
	"io"
	"os"
	"syscall"
	"time"
)

// Options configure a Client. Dir and Binary are required.
type Options struct {
	// Dir is the keeper's state directory. One keeper serves one Dir. It is created with mode 0700
	// if it does not exist.
	Dir string
	// Binary is the path of mica-keeper. Connect makes a running keeper of another build execute
	// this file in place.
	Binary string
	// StartTimeout bounds the time to find or start a keeper. Default 10 s.
	StartTimeout time.Duration
	// RequestTimeout bounds each request whose ctx has no deadline, except Create and Restore,
	// which CreateArgs.Timeout bounds. Default 2 min.
	RequestTimeout time.Duration
	// NoUpgrade leaves a running keeper of another build unchanged.
	NoUpgrade bool
}

// CreateArgs describe a container.
type CreateArgs struct {
	// ID identifies the container for keeper and runtime: letters, digits, '_', '.' and '-', not
	// beginning with a dot, at most 128 bytes.
	ID string
	// Runtime is the absolute path of the OCI runtime and its global options, for example
	// "/usr/sbin/runc", "--root", "/run/mica/runtimes/runc".
	Runtime []string
	// Bundle is the absolute path of the OCI bundle, and the runtime's working directory.
	Bundle string
	// Terminal must equal process.terminal of the bundle's config.json.
	Terminal bool
	// Stdin keeps the container's stdin open for Attach; without it, stdin is /dev/null. A
	// container with a terminal always has stdin.
	Stdin bool
	// StdinOnce closes stdin when the first attached client with stdin ends its input or
	// disconnects. It is ignored for terminals, which cannot be half closed.
	StdinOnce bool
	// LogPath is the CRI log file, to which the keeper appends; "" for no log.
	LogPath string
	// LogDir is the pod's log directory, which contains LogPath. The keeper follows symbolic links
	// in the path of LogDir, but none below it. "" means the parent of LogPath.
	LogDir string
	// MemoryCgroup is the absolute path of the container's memory cgroup, whose OOM counter the
	// keeper reads at the exit; "" means the cgroup of the container's init.
	MemoryCgroup string
	// Timeout bounds the runtime's create, and each later start and delete. Default 1
	// min.
	Timeout time.Duration
	// Env is appended to the runtime's environment.
	Env []string
	// UID and GID own the container's pipes, so that its first process can open /dev/stdout. They
	// are the host IDs of root in its user namespace.
	UID, GID int
	// StartPipe says how the keeper itself can start the process, which waits at the pipe exec.fifo
	// in its directory below the runtime's --root: "read" or "write" (oci.StartPipe). "" means by
	// the runtime's start, which is also the fallback. It must be "" if the runtime's start has to
	// do more, such as running hooks.
	StartPipe string
	// RemoveState makes Delete remove the container's directory below the runtime's --root instead
	// of running the runtime's delete, which is the fallback. The caller must then kill what is left
	// in the container's cgroup, and remove the cgroup. It must be false if the runtime's delete has
	// to do more, such as running hooks.
	RemoveState bool
}

// RestoreArgs describe a container that is restored from a checkpoint.
type RestoreArgs struct {
	CreateArgs
	// Images is the directory of CRIU's image files, Work the directory for CRIU's log. Both are
	// absolute paths of existing directories.
	Images, Work string
	// Flags are additional options for the runtime's restore.
	Flags []string
}

// InitArgs describe the init process of a pod with a shared PID namespace.
type InitArgs struct {
	// ID identifies the init; the same rules apply as for containers.
	ID string
	// NetNS, IPCNS and UTSNS are paths of the namespaces to join; "" means the keeper's own.
	NetNS, IPCNS, UTSNS string
	// UserNS is the path of the user namespace that owns the other namespaces and the new PID
	// namespace; "" means the keeper's own.
	UserNS string
	// PIDNSPin is an existing file. The keeper bind mounts the new PID namespace on it; the caller
	// unmounts it. "" means no mount.
	PIDNSPin string
	// Binary is the path of mica-init.
	Binary string
	// CgroupProcs are the cgroup.procs files to which the keeper writes the init's process ID.
	CgroupProcs []string
}

// State is a container's state in the keeper.
type State struct {
	ID string
	// Pid is the process ID of the container's init in the keeper's PID namespace. It remains set
	// after the exit.
	Pid int
	// Running is true from Create until the init has exited; so also before Start.
	Running bool
	// Exit is nil while Running is true.
	Exit *Exit
}

// Exit describes how a container's init ended.
type Exit struct {
	// Code is the exit code, 128+n after a death by signal n, or 255 if it is unknown; Reason then
	// says why.
	Code int
	// Signal is the signal that killed the init, or 0.
	Signal int
	// At is the time at which the keeper noticed the exit, by the host's clock.
	At time.Time
	// OOMKilled is true if the kernel killed a process in the container's memory cgroup for lack of
	// memory.
	OOMKilled bool
	// Reason says why Code is unknown; otherwise it is "".
	Reason string
}

// Event reports that the container ID has ended.
type Event struct {
	ID   string
	Exit Exit
}

// AttachArgs choose the streams of an Attachment. A terminal has no Stderr.
type AttachArgs struct {
	Stdin, Stdout, Stderr bool
}

// Attachment is one client's connection to a container's streams. A stream is nil if it was not
// requested or if the container does not have it. Different streams may be used concurrently.
//
// Stdout and Stderr carry the output from Attach on. They end with io.EOF when the container has
// ended, or when more output waits for this client than its pipe holds: 1 MiB, or less if the
// kernel does not allow it. A slow client therefore never delays the container's log. All three
// streams support deadlines.
type Attachment struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// Close closes every stream and always returns nil. It may be called more than once.
func (a *Attachment) Close() error {
	for _, c := range []io.Closer{a.Stdin, a.Stdout, a.Stderr} {
		if c != nil {
			_ = c.Close()
		}
	}
	return nil
}

func asFile(fd int, name string) *os.File {
	_ = syscall.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}
