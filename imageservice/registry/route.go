package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	dialTimeout = 15 * time.Second
	tlsTimeout  = 15 * time.Second
	// maxHeaderSize bounds the header of an answer in bytes. Tokens and signed URLs in headers have
	// some KiB.
	maxHeaderSize = 256 << 10
)

// route determines the TLS settings of a request and the addresses that it may reach. Requests of
// different routes share no connection, because a connection is checked only when it is made.
type route struct {
	own        bool     // to the host itself, with all of its settings in hosts.toml
	nearest    locality // of the addresses that it may reach
	authority  bool     // trusts the authorities that hosts.toml names for the host
	skipVerify bool
	proxied    bool // a proxy resolves the name; the node only dials the proxy
}

// transports are the connections of a host.
type transports struct {
	tls         *tls.Config // of the host itself
	dialTimeout time.Duration
	stall       time.Duration

	mu      sync.Mutex // guards byRoute
	byRoute map[route]*http.Transport
}

// on returns the transport of a route.
func (t *transports) on(r route) *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr, ok := t.byRoute[r]
	if !ok {
		tr = t.open(r)
		t.byRoute[r] = tr
	}
	return tr
}

func (t *transports) open(r route) *http.Transport {
	dialer := &net.Dialer{Timeout: t.dialTimeout, KeepAlive: 30 * time.Second}
	if !r.own && !r.proxied {
		dialer.ControlContext = r.checkAddress
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        t.tlsConfig(r),
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  t.stall,
		MaxResponseHeaderBytes: maxHeaderSize,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second, // for the time in which the pull waits for a layer of another pull
		DisableCompression:     true,
		ReadBufferSize:         64 << 10,
	}
}

// tlsConfig returns the host's settings for the host itself. Other servers get no client
// certificate.
func (t *transports) tlsConfig(r route) *tls.Config {
	if r.own {
		return t.tls
	}
	c := &tls.Config{MinVersion: t.tls.MinVersion, InsecureSkipVerify: r.skipVerify}
	if r.authority {
		c.RootCAs = t.tls.RootCAs
	}
	return c
}

// checkAddress returns an *addressError for a forbidden address. It is called after the name is
// resolved and before the connection is made.
func (r route) checkAddress(_ context.Context, _, address string, _ syscall.RawConn) error {
	if localityOfConn(address) > r.nearest {
		return &addressError{address: address}
	}
	return nil
}

func (t *transports) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range t.byRoute {
		tr.CloseIdleConnections()
	}
}

// addressError is a refusal to connect to an address that another server named.
type addressError struct{ address string }

func (e *addressError) Error() string {
	return fmt.Sprintf("address %s is of this node or of a private network, where another server may not lead", e.address)
}

// Unwrap returns the class of the error.
func (e *addressError) Unwrap() error { return errdefs.ErrPermissionDenied }

// roundTrip sends a request and returns the distance of the server that answers. It follows no
// redirect.
func (t *transports) roundTrip(req *http.Request, r route) (*http.Response, locality, error) {
	from := public
	proxy, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, from, fmt.Errorf("find proxy: %w", err)
	}
	if r.proxied = proxy != nil; r.proxied && !r.own && literalLocality(req.URL) > r.nearest {
		return nil, from, &addressError{address: req.URL.Host}
	}
	var answered string
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { answered = i.Conn.RemoteAddr().String() },
	})
	client := http.Client{
		Transport:     t.on(r),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		return nil, from, err
	}
	if !r.proxied {
		from = localityOfConn(answered)
	}
	return resp, from, nil
}

// ledRoute returns the route to a URL that a server at from named. A public server may name a
// private address only over verified TLS, which proves that the server there has the name in the
// URL.
func (h *host) ledRoute(u *url.URL, from locality, skipVerify bool) route {
	r := route{nearest: from, authority: true, skipVerify: skipVerify}
	if from == public && u.Scheme == "https" && !skipVerify {
		r.nearest = private
	}
	return r
}
