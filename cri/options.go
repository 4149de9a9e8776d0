package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/micarun/mica/internal/unixsock"
)

// Options says where and how the endpoint listens. The zero value of every field except Socket
// means its default.
type Options struct {
	// Socket is the absolute path of the unix socket. Its mode is 0660.
	Socket string
	// Group is the group of the socket: a name or a number. Default: root's group.
	Group string
	// MaxMessageBytes limits the size of a response. Requests have at most 8 MiB, or this if it is
	// less. Default: 32 MiB.
	MaxMessageBytes int
	// StopTimeout is how long calls in progress may continue when the server stops. Default: 10 s.
	StopTimeout time.Duration
	// Incoming, if set, derives the context of each unary call, for example from the call's
	// metadata.
	Incoming func(context.Context) context.Context `toml:"-"`
	// Streaming is the server behind the URLs of Exec, Attach and PortForward.
	Streaming StreamingOptions
}

// StreamingOptions says where exec, attach and port-forward streams are served.
type StreamingOptions struct {
	// Address is the IP:port to listen on; port 0 means any free port. An address other than
	// loopback needs TLS. Default: 127.0.0.1:0, which is enough because the kubelet is on the same
	// node.
	Address string
	// TLSCert and TLSKey are the paths of PEM files and enable TLS.
	TLSCert string
	TLSKey  string
	// IdleTimeout ends a session without any traffic. Default: 4 h.
	IdleTimeout time.Duration
	// CreationTimeout is the time in which a SPDY client must open its streams. Default: 30 s.
	CreationTimeout time.Duration
}

const (
	defaultMessageBytes    = 32 << 20
	defaultStopTimeout     = 10 * time.Second
	defaultStreamAddress   = "127.0.0.1:0"
	defaultIdleTimeout     = 4 * time.Hour
	defaultCreationTimeout = 30 * time.Second
)

func (o Options) withDefaults() Options {
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, defaultMessageBytes)
	o.StopTimeout = cmp.Or(o.StopTimeout, defaultStopTimeout)
	o.Streaming.Address = cmp.Or(o.Streaming.Address, defaultStreamAddress)
	o.Streaming.IdleTimeout = cmp.Or(o.Streaming.IdleTimeout, defaultIdleTimeout)
	o.Streaming.CreationTimeout = cmp.Or(o.Streaming.CreationTimeout, defaultCreationTimeout)
	return o
}

// Validate reports every invalid option. Each line of the error begins with the option's key,
// relative to the options: "socket", "streaming.address".
func (o Options) Validate() error {
	o = o.withDefaults()
	var problems []error
	bad := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf(key+": "+format, args...))
	}
	switch {
	case !filepath.IsAbs(o.Socket):
		bad("socket", "%q is not an absolute path", o.Socket)
	case len(o.Socket) > unixsock.MaxPath:
		bad("socket", "%q is longer than %d bytes", o.Socket, unixsock.MaxPath)
	}
	if o.MaxMessageBytes < 1<<20 {
		bad("max_message_bytes", "%d is less than 1 MiB", o.MaxMessageBytes)
	}
	if o.StopTimeout < 0 {
		bad("stop_timeout", "%s is negative", o.StopTimeout)
	}
	return errors.Join(append(problems, o.Streaming.validate()...)...)
}

func (o StreamingOptions) validate() []error {
	var problems []error
	bad := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf("streaming."+key+": "+format, args...))
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		bad("tls_cert", "tls_cert and tls_key must be set together")
	}
	addr, err := netip.ParseAddrPort(o.Address)
	switch {
	case err != nil:
		bad("address", "%q is not IP:port", o.Address)
	case addr.Addr().IsUnspecified():
		bad("address", "%s cannot be used in a URL", addr.Addr())
	case !addr.Addr().IsLoopback() && o.TLSCert == "":
		bad("address", "%s is not loopback, so tls_cert and tls_key are needed", addr.Addr())
	}
	if o.IdleTimeout < 0 {
		bad("idle_timeout", "%s is negative", o.IdleTimeout)
	}
	if o.CreationTimeout < 0 {
		bad("creation_timeout", "%s is negative", o.CreationTimeout)
	}
	return problems
}
