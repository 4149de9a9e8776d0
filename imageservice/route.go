package imageservice

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
	// maxHeaderSize bounds the header of an answer. Tokens and signed URLs in headers have some
	// KiB.
	maxHeaderSize = 256 << 10
)

// route says with which TLS settings and to which addresses a request goes. Requests of different
// routes share no connection, because a connection keeps what it was allowed.
type route struct {
	own        bool     // to the host itself, with everything that hosts.toml says about it
	nearest    locality // of the addresses that it may lead to
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
		IdleConnTimeout:        30 * time.Second, // for those that another pull's wait for a layer leaves behind
		DisableCompression:     true,
		ReadBufferSize:         64 << 10,
	}
}

// tlsConfig returns the host's settings for the host itself. Client certificates are for no other
// server.
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

// checkAddress refuses an address after the name is resolved and before the connection is made.
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

// addressError is a refusal to connect to where another server led.
type addressError struct{ address string }

func (e *addressError) Error() string {
	return fmt.Sprintf("address %s is of this node or of a private network, where another server may not lead", e.address)
}

// Unwrap gives the error its class.
func (e *addressError) Unwrap() error { return errdefs.ErrPermissionDenied }

// roundTrip sends a request and says how near the server that answered is. It follows no redirect.
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

// ledRoute is the route to a URL that a server at from named. A private address of a server that is
// not in a private network itself is only reached over verified TLS: the server there proves to be
// the one that the URL names.
func (h *host) ledRoute(u *url.URL, from locality, skipVerify bool) route {
	r := route{nearest: from, authority: true, skipVerify: skipVerify}
	if from == public && u.Scheme == "https" && !skipVerify {
		r.nearest = private
	}
	return r
}
