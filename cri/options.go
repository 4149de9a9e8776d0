package cri

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/micarun/mica/internal/unixsock"
)

// Options says where the endpoint listens. The zero value of every field but
// Socket is its default.
type Options struct {
	// Socket is the absolute path of the unix socket. Its mode is 0660.
	Socket string
	// Group owns the socket beside root: a name or a number. Default: root's group.
	Group string
	// MaxMessageBytes bounds one request and one answer. Default: 32 MiB.
	MaxMessageBytes int
	// StopTimeout is how long calls in progress may go on when the server is told
	// to stop. Default: 10 s.
	StopTimeout time.Duration
	// Incoming, when set, derives the context of each call with one answer, such as
	// from the call's metadata.
	Incoming func(context.Context) context.Context `toml:"-"`
	// Streaming is the server behind the URLs of Exec, Attach and PortForward.
	Streaming StreamingOptions
}

// StreamingOptions says where exec, attach and port-forward streams are served.
type StreamingOptions struct {
	// Address is the host:port to listen on, the host being an IP address; port 0
	// takes any free one. An address that is not loopback needs TLS.
	// Default: 127.0.0.1:0, which is enough as the kubelet is on the same node.
	Address string
	// TLSCert and TLSKey name PEM files and switch TLS on.
	TLSCert string
	TLSKey  string
	// IdleTimeout ends a session on which nothing moves. Default: 4 h.
	IdleTimeout time.Duration
	// CreationTimeout is how long a SPDY client may take to open its streams.
	// Default: 30 s.
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
	setDefault(&o.MaxMessageBytes, defaultMessageBytes)
	setDefault(&o.StopTimeout, defaultStopTimeout)
	setDefault(&o.Streaming.Address, defaultStreamAddress)
	setDefault(&o.Streaming.IdleTimeout, defaultIdleTimeout)
	setDefault(&o.Streaming.CreationTimeout, defaultCreationTimeout)
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate reports every option that cannot work. Each line of the error begins
// with the option's key, relative to the options: "socket", "streaming.address".
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
		bad("tls_cert", "tls_cert and tls_key go together")
	}
	addr, err := netip.ParseAddrPort(o.Address)
	switch {
	case err != nil:
		bad("address", "%q is not IP:port", o.Address)
	case addr.Addr().IsUnspecified():
		bad("address", "%s is no address that a URL can name", addr.Addr())
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
