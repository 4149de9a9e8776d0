// Package wire is the protocol between daemon and keeper: messages, their limits, and the socket
// that carries them with file descriptors.
//
// Each packet of a unix seqpacket socket is one [Message] in JSON. The daemon sends requests with
// an ID that it chooses. The keeper answers each request with one message of the same ID, in any
// order. It also pushes messages with ID 0: events and descriptor copies. The first message in both
// directions is Hello, which negotiates the version.
//
// It is not an RPC framework: it has no streams and no interface definitions. It uses only the
// standard library and golang.org/x/sys, because the keeper links it.
//
// Functions may be called concurrently. Values of all types except [Conn] are plain data, which
// must not be changed while another goroutine uses them.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Versions of the protocol that this package supports.
const (
	Version    = 1
	MinVersion = 1
)

// Limits of one message.
const (
	// MaxMessage is the largest packet in bytes.
	MaxMessage = 64 << 10
	// MaxFDs is the largest number of descriptors with one message.
	MaxFDs = 16
	// MaxID is the longest container ID in bytes.
	MaxID = 128
	// MaxText is the maximum length of an error's text, in bytes.
	MaxText = 8 << 10
)

// Operations. The comments give the bodies of request and reply.
const (
	OpHello       = "hello"     // Hello, Hello
	OpCreate      = "create"    // Create, Created
	OpRestore     = "restore"   // Restore, Created
	OpInit        = "init"      // Init, Created
	OpStart       = "start"     // Target
	OpKill        = "kill"      // Kill
	OpDelete      = "delete"    // Target
	OpReopen      = "reopen"    // Target
	OpFlush       = "flush"     // Target
	OpResize      = "resize"    // Resize
	OpAttach      = "attach"    // Attach; the descriptors come with the reply
	OpList        = "list"      // nothing, List: pages until More is false
	OpGet         = "get"       // Target, State
	OpCopies      = "copies"    // Target: push the copies of its descriptors again
	OpAdopt       = "adopt"     // Descriptors with the copies
	OpAdoptDone   = "adoptdone" // nothing: every copy has been handed back
	OpUpgrade     = "upgrade"   // Upgrade; answered by the new program
	OpShutdown    = "shutdown"  // nothing
	OpExit        = "exit"      // pushed: State
	OpDescriptors = "custody"   // pushed: Descriptors with the copies; older builds have this name
	OpRelease     = "release"   // pushed: Target: drop the copies
)

// Names of descriptors in Message.FDs.
const (
	FDPid      = "pid"      // pidfd of the container's init
	FDStdin    = "stdin"    // write end
	FDStdout   = "stdout"   // read end
	FDStderr   = "stderr"   // read end
	FDTerminal = "terminal" // pty master
	FDLog      = "log"      // CRI log file
	FDPending0 = "pending0" // memfd: output of stdout or terminal not yet in the log
	FDPending1 = "pending1" // memfd: output of stderr not yet in the log
	FDTable    = "table"    // memfd: how much of each log is written
)

// Message is the content of one packet.
type Message struct {
	ID    uint64          `json:"id,omitempty"`
	Op    string          `json:"op"`
	Error *Error          `json:"error,omitempty"`
	FDs   []string        `json:"fds,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Error codes.
const (
	CodeNotFound     = "not_found"
	CodeExists       = "already_exists"
	CodePrecondition = "failed_precondition"
	CodeInvalid      = "invalid_argument"
	CodeDeadline     = "deadline_exceeded"
	CodeExhausted    = "resource_exhausted"
	CodeUnavailable  = "unavailable"
	CodeInternal     = "internal"
)

// Error is the result of a failed request.
type Error struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// Errorf returns an Error with the given code and the formatted text, cut to MaxText bytes.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Text: clip(fmt.Sprintf(format, args...))}
}

// AsError converts any error to one that can be sent. An *Error in err's chain gives the code, and
// other errors get CodeInternal. AsError of nil is nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return &Error{Code: e.Code, Text: clip(err.Error())}
	}
	return Errorf(CodeInternal, "%v", err)
}

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > MaxText {
		s = strings.ToValidUTF8(s[:MaxText], "") + " …"
	}
	return s
}

// Hello is the first message of a connection.
type Hello struct {
	Version int `json:"version"`
	Min     int `json:"min"`
	// Pid, Exe and Cgroup describe the keeper: its process ID, the identity of its program file
	// (FileID), and the cgroup directories that it made for itself.
	Pid    int      `json:"pid,omitempty"`
	Exe    string   `json:"exe,omitempty"`
	Cgroup []string `json:"cgroup,omitempty"`
	// Instance is unique to one run of a keeper process.
	Instance string `json:"instance,omitempty"`
	// Managed is true if a service manager runs the keeper and restarts it when it dies.
	Managed bool `json:"managed,omitempty"`
	// Orphans are containers whose descriptors the keeper does not have.
	Orphans []string `json:"orphans,omitempty"`
}

// Agree returns the highest version that both sides support, or an error if there is none.
func (h Hello) Agree() (int, error) {
	v := min(h.Version, Version)
	if v < h.Min || v < MinVersion {
		return 0, fmt.Errorf("no common protocol version: peer speaks %d to %d, this side %d to %d", h.Min, h.Version, MinVersion, Version)
	}
	return v, nil
}

// Create requests a new container.
type Create struct {
	ID           string        `json:"id"`
	Runtime      []string      `json:"runtime"`
	Bundle       string        `json:"bundle"`
	Terminal     bool          `json:"terminal,omitempty"`
	Stdin        bool          `json:"stdin,omitempty"`
	StdinOnce    bool          `json:"stdinOnce,omitempty"`
	LogPath      string        `json:"logPath,omitempty"`
	LogDir       string        `json:"logDir,omitempty"`
	MemoryCgroup string        `json:"memoryCgroup,omitempty"`
	Timeout      time.Duration `json:"timeout,omitempty"`
	Env          []string      `json:"env,omitempty"`
	UID          int           `json:"uid,omitempty"`
	GID          int           `json:"gid,omitempty"`
	StartPipe    string        `json:"startPipe,omitempty"`
	RemoveState  bool          `json:"removeState,omitempty"`
}

// Values of Create.StartPipe. An empty one, and any other, means the runtime's start.
const (
	StartByReading = "read"  // runc: the process waits for a reader of its pipe
	StartByWriting = "write" // crun: the process waits for a byte
)

// Check returns an Error with CodeInvalid if a field is invalid.
func (c Create) Check() error {
	if err := CheckID(c.ID); err != nil {
		return err
	}
	switch {
	case len(c.Runtime) == 0 || !strings.HasPrefix(c.Runtime[0], "/"):
		return Errorf(CodeInvalid, "runtime of container %s is not an absolute path", c.ID)
	case !strings.HasPrefix(c.Bundle, "/"):
		return Errorf(CodeInvalid, "bundle of container %s is not an absolute path", c.ID)
	case c.LogPath != "" && !strings.HasPrefix(c.LogPath, "/"):
		return Errorf(CodeInvalid, "log path of container %s is not absolute", c.ID)
	case c.Timeout < 0:
		return Errorf(CodeInvalid, "timeout of container %s is negative", c.ID)
	}
	return nil
}

// Restore requests a container whose processes are restored from a checkpoint. It runs at once.
type Restore struct {
	Create
	// Images is the directory of CRIU's image files, Work the directory for CRIU's log.
	Images string `json:"images"`
	Work   string `json:"work"`
	// Flags are additional options for the runtime's restore command.
	Flags []string `json:"flags,omitempty"`
}

// Check returns an Error with CodeInvalid if a field is invalid.
func (r Restore) Check() error {
	if err := r.Create.Check(); err != nil {
		return err
	}
	if !strings.HasPrefix(r.Images, "/") || !strings.HasPrefix(r.Work, "/") {
		return Errorf(CodeInvalid, "images or work directory of container %s is not an absolute path", r.ID)
	}
	return nil
}

// Init requests a pod's init process.
type Init struct {
	ID          string   `json:"id"`
	NetNS       string   `json:"netNS,omitempty"`
	IPCNS       string   `json:"ipcNS,omitempty"`
	UTSNS       string   `json:"utsNS,omitempty"`
	UserNS      string   `json:"userNS,omitempty"`
	PIDNSPin    string   `json:"pidNSPin,omitempty"`
	Binary      string   `json:"binary"`
	CgroupProcs []string `json:"cgroupProcs,omitempty"`
}

// Check returns an Error with CodeInvalid if a field is invalid.
func (i Init) Check() error {
	if err := CheckID(i.ID); err != nil {
		return err
	}
	if !strings.HasPrefix(i.Binary, "/") {
		return Errorf(CodeInvalid, "binary of init %s is not an absolute path", i.ID)
	}
	return nil
}

// Created is the reply to Create, Restore and Init.
type Created struct {
	Pid int `json:"pid"`
}

// Target names a container.
type Target struct {
	ID string `json:"id"`
}

// Kill requests a signal.
type Kill struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// Resize requests a terminal size in characters.
type Resize struct {
	ID     string `json:"id"`
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Attach requests copies of streams.
type Attach struct {
	ID     string `json:"id"`
	Stdin  bool   `json:"stdin,omitempty"`
	Stdout bool   `json:"stdout,omitempty"`
	Stderr bool   `json:"stderr,omitempty"`
}

// Upgrade requests that the keeper re-executes with another program.
type Upgrade struct {
	Binary string `json:"binary"`
}

// State is a container's state.
type State struct {
	ID      string `json:"id"`
	Pid     int    `json:"pid"`
	Running bool   `json:"running"`
	Exit    *Exit  `json:"exit,omitempty"`
}

// Exit is a container's exit record, and the content of exit.json.
type Exit struct {
	Code      int       `json:"code"`
	Signal    int       `json:"signal,omitempty"`
	At        time.Time `json:"at"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	Reason    string    `json:"reason,omitempty"`
}

// List is one page of states, ordered by ID. If More is set, the next page is requested with After
// set to the last ID.
type List struct {
	After  string  `json:"after,omitempty"`
	States []State `json:"states,omitempty"`
	More   bool    `json:"more,omitempty"`
}

// PageSize is the number of states in a List, chosen so that it fits into MaxMessage.
const PageSize = 100

// Descriptors is sent with copies of a container's descriptors. For the table it has no ID and no
// Record.
type Descriptors struct {
	ID     string          `json:"id,omitempty"`
	Record json.RawMessage `json:"record,omitempty"`
}

// CheckID returns an Error with CodeInvalid unless id consists of letters, digits, '_', '.' and '-'
// and does not begin with a dot.
func CheckID(id string) error {
	ok := id != "" && len(id) <= MaxID && id[0] != '.'
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return Errorf(CodeInvalid, "container ID %.64q is not valid", id)
	}
	return nil
}

// Encode returns the packet of m with body, which may be nil. A packet larger than MaxMessage is an
// Error with CodeExhausted. A body without a JSON form and more than MaxFDs descriptors are plain
// errors.
func Encode(m Message, body any) ([]byte, error) {
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", m.Op, err)
		}
		m.Body = raw
	}
	if len(m.FDs) > MaxFDs {
		return nil, fmt.Errorf("encode %s: %d descriptors, at most %d allowed", m.Op, len(m.FDs), MaxFDs)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Op, err)
	}
	if len(data) > MaxMessage {
		return nil, Errorf(CodeExhausted, "encode %s: %d bytes, at most %d allowed", m.Op, len(data), MaxMessage)
	}
	return data, nil
}

// Decode parses a packet. It ignores unknown fields, which newer peers may send. A packet that is
// too large or not a valid message is a plain error.
func Decode(data []byte) (Message, error) {
	var m Message
	if len(data) > MaxMessage {
		return m, fmt.Errorf("decode message: %d bytes, at most %d allowed", len(data), MaxMessage)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return Message{}, fmt.Errorf("decode message: %w", err)
	}
	if m.Op == "" {
		return Message{}, errors.New("decode message: no operation")
	}
	if len(m.FDs) > MaxFDs {
		return Message{}, fmt.Errorf("decode message: %d descriptors, at most %d allowed", len(m.FDs), MaxFDs)
	}
	return m, nil
}

// Into decodes the body of m into v. Its errors have CodeInvalid.
func (m Message) Into(v any) error {
	if len(bytes.TrimSpace(m.Body)) == 0 {
		return Errorf(CodeInvalid, "%s: no body", m.Op)
	}
	if err := json.Unmarshal(m.Body, v); err != nil {
		return Errorf(CodeInvalid, "%s: decode body: %v", m.Op, err)
	}
	return nil
}
