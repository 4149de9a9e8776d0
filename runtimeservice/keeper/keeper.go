// Package keeper is the daemon's side of mica-keeper: the one process per
// node that is the parent of every container, holds its stdio, writes its CRI
// log and records its exit.
//
// The package finds the keeper of a state directory, starts one if none
// answers, and speaks to it over a unix seqpacket socket (package wire). It
// holds copies of every container's descriptors for the keeper; when the
// keeper dies, the [Client] starts another and hands the copies back, without
// its callers noticing more than a delay. The server itself is package
// server, which this package does not import.
//
// It is not a container runtime (it makes the keeper run one) and it knows
// nothing of pods, images or CRI records. What a container's end means is the
// caller's to decide.
//
// On disk, all below Options.Dir, which belongs on a tmpfs:
//
//	lock                 flock of the running keeper
//	keeper.sock          its socket, mode 0600
//	keeper.log           what it has to say
//	<id>/container.json  what a new keeper must know of a container
//	<id>/exit.json       the exit record, until Delete
//
// Invariants: an exit is reported at least once per Client and exactly once
// per Client and container; a line of a container's output is written to its
// log exactly once, whichever of daemon and keeper is killed at whatever
// instant, as long as one of the two lives (a terminal's output may lose what
// one read was carrying).
package keeper

import (
	"io"
	"os"
	"syscall"
	"time"
)

// Options say where the keeper lives. Dir and Binary are required.
type Options struct {
	// Dir is the keeper's state directory. One keeper serves one Dir. It is
	// made with mode 0700 if absent.
	Dir string
	// Binary is the path of mica-keeper. A running keeper that was started
	// from another file re-executes this one in place.
	Binary string
	// StartTimeout bounds finding or starting a keeper. Default 10 s.
	StartTimeout time.Duration
	// RequestTimeout bounds every request whose ctx has no earlier deadline,
	// except Create, which its own Timeout bounds. Default 2 min.
	RequestTimeout time.Duration
	// NoUpgrade leaves a keeper of another build as it is.
	NoUpgrade bool
}

// CreateArgs describe one container to the keeper.
type CreateArgs struct {
	// ID names the container for keeper and runtime; no slash, at most 128 bytes.
	ID string
	// Runtime is the OCI runtime's path and its global flags, for example
	// "/usr/sbin/runc", "--root", "/run/mica/runtimes/runc".
	Runtime []string
	// Bundle is the OCI bundle directory, and the runtime's working directory.
	Bundle string
	// Terminal must equal process.terminal of the bundle's config.json.
	Terminal bool
	// Stdin keeps the container's stdin open for Attach; otherwise it is
	// /dev/null. Terminals always have stdin.
	Stdin bool
	// StdinOnce closes stdin when the first attached client that writes to it
	// goes. It has no meaning for terminals, which cannot be half closed.
	StdinOnce bool
	// LogPath is the CRI log file, appended to; "" for no log.
	LogPath string
	// LogDir is the pod's log directory, in which LogPath lies. Symbolic links
	// are followed up to it and not below. "" stands for LogPath's parent.
	LogDir string
	// MemoryCgroup is the absolute directory of the container's memory
	// cgroup, where the OOM counter is read at exit; may be "".
	MemoryCgroup string
	// Timeout bounds the runtime's create, and each later start and delete.
	// Default 60 s.
	Timeout time.Duration
	// Env is added to the runtime's environment.
	Env []string
	// UID and GID own the container's pipes, so that its first process may
	// open them again as /dev/stdout: the root of its user namespace.
	UID, GID int
}

// RestoreArgs describe a container that comes from a checkpoint.
type RestoreArgs struct {
	CreateArgs
	// Images is the directory of CRIU's image files, Work one that takes its
	// log. Both are absolute, and there.
	Images, Work string
	// Flags are further ones of the runtime's restore.
	Flags []string
}

// InitArgs describe the init process of a pod with a shared PID namespace.
type InitArgs struct {
	// ID names the init like a container.
	ID string
	// NetNS, IPCNS and UTSNS are paths of namespaces to join; "" stays in the
	// keeper's own.
	NetNS, IPCNS, UTSNS string
	// UserNS is the path of the user namespace that owns the others and will
	// own the new one; "" for the keeper's own.
	UserNS string
	// PIDNSPin is an existing file on which the new PID namespace is bind
	// mounted; "" for none. The caller unmounts it.
	PIDNSPin string
	// Binary is the path of mica-init.
	Binary string
	// CgroupProcs are cgroup.procs files that the init's pid is written to.
	CgroupProcs []string
}

// State is what the keeper knows of a container.
type State struct {
	ID string
	// Pid is the container's init as the keeper sees it; kept after its exit.
	Pid int
	// Running is true from Create until the init is gone, so also before Start.
	Running bool
	// Exit is set when Running is false.
	Exit *Exit
}

// Exit is the end of a container's init.
type Exit struct {
	// Code is the exit code, 128+n for death by signal n, or 255 when Reason
	// says why it is not known.
	Code int
	// Signal is the signal that killed the init, or 0.
	Signal int
	// At is when the keeper noticed.
	At time.Time
	// OOMKilled is true if the kernel killed a process of the container's
	// memory cgroup for lack of memory.
	OOMKilled bool
	// Reason is "" or why Code is not the real one.
	Reason string
}

// Event tells of the exit of the container ID.
type Event struct {
	ID   string
	Exit Exit
}

// AttachArgs choose the streams of an Attachment. Stderr of a terminal is
// never there.
type AttachArgs struct {
	Stdin, Stdout, Stderr bool
}

// Attachment is one client's connection to a container's streams. The streams
// that were not asked for, or that the container does not have, are nil.
//
// Stdout and Stderr carry the output from the moment of Attach on and end
// with io.EOF when the container has ended, or when this client has read so
// slowly that more than the pipe's buffer (1 MiB where the kernel allows it)
// was waiting: the container's log is never kept waiting for a client.
// Deadlines work on all three.
type Attachment struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// Close closes every stream. It may be called more than once.
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
