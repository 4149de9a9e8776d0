package testregistry

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Options of a registry. The zero value is an open registry in memory that behaves.
type Options struct {
	Dir    string  // directory of the on-disk form; "" keeps everything in memory
	Auth   Auth    // what callers must prove; the zero value lets everybody in
	Faults []Fault // faults in force from the start; see Registry.AddFault
}

// Request is one request as the registry saw it.
type Request struct {
	Host          string // Host header
	Method        string
	Path          string
	Query         string
	Range         string // Range header
	Authorization string // Authorization header
	Header        http.Header
}

// Registry is an http.Handler that serves the distribution API below /v2/ and, for bearer authentication, tokens at /token.
type Registry struct {
	store store
	auth  Auth

	mu       sync.Mutex // guards the fields below
	faults   []*faultState
	requests []Request
	uploads  map[string]*bytes.Buffer
	tokens   map[string]string // issued bearer token -> scope
	serial   int
}

// New returns a registry. A Dir is created on the first write; errors of the disk come from the call that meets them.
func New(opts Options) *Registry {
	r := &Registry{
		auth:    opts.Auth,
		uploads: make(map[string]*bytes.Buffer),
		tokens:  make(map[string]string),
	}
	if opts.Dir == "" {
		r.store = newMemoryStore()
	} else {
		r.store = diskStore{dir: opts.Dir}
	}
	for _, f := range opts.Faults {
		r.AddFault(f)
	}
	return r
}

// PutBlob stores data and returns its sha256 digest. Blobs are visible in every repository.
func (r *Registry) PutBlob(data []byte) (digest.Digest, error) {
	return r.PutBlobFrom(bytes.NewReader(data))
}

// PutBlobFrom stores what src yields up to EOF and returns its sha256 digest. With a Dir the data is streamed to disk.
func (r *Registry) PutBlobFrom(src io.Reader) (digest.Digest, error) {
	return r.store.putBlob(src)
}

// PutManifest stores a manifest or index in repo under its digest and, when ref is not empty and not a digest, under the tag ref.
// repo is a name without host, such as "library/busybox". An empty mediaType is served without a Content-Type.
func (r *Registry) PutManifest(repo, ref, mediaType string, data []byte) (digest.Digest, error) {
	if err := checkName(repo); err != nil {
		return "", fmt.Errorf("put manifest %s:%s: %w", repo, ref, err)
	}
	dgst, err := r.store.putBlob(bytes.NewReader(data))
	if err != nil {
		return "", fmt.Errorf("put manifest %s:%s: %w", repo, ref, err)
	}
	if err := r.store.putManifest(repo, dgst, mediaType); err != nil {
		return "", fmt.Errorf("put manifest %s:%s: %w", repo, ref, err)
	}
	if ref == "" || digest.Digest(ref).Validate() == nil {
		return dgst, nil
	}
	if err := r.store.putTag(repo, ref, dgst); err != nil {
		return "", fmt.Errorf("put manifest %s:%s: %w", repo, ref, err)
	}
	return dgst, nil
}

// Digest returns what a tag names; the error is fs.ErrNotExist for one that is not
// there.
func (r *Registry) Digest(repo, tag string) (digest.Digest, error) { return r.store.tag(repo, tag) }

// AddFault puts a fault in force. Of several faults that match a request the one added first and not used up is applied.
func (r *Registry) AddFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &faultState{Fault: f})
}

// ClearFaults makes the registry behave again. Requests that hang already stay hanging until their client goes away.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// Requests returns the requests seen so far, oldest first.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// ResetRequests forgets the requests seen so far.
func (r *Registry) ResetRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Server is a registry that listens.
type Server struct {
	Addr string // host:port, the registry part of an image reference
	URL  string // http://host:port

	srv  *http.Server
	done chan struct{}
}

// Start serves the registry in plain HTTP on addr, such as "127.0.0.1:0", until Close.
func (r *Registry) Start(addr string) (*Server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for test registry: %w", err)
	}
	s := &Server{
		Addr: ln.Addr().String(),
		URL:  "http://" + ln.Addr().String(),
		srv:  &http.Server{Handler: r, ReadHeaderTimeout: time.Minute},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		// Serve ends with ErrServerClosed after Close; any other end shows itself to the clients.
		_ = s.srv.Serve(ln)
	}()
	return s, nil
}

// Close ends the server and every connection, hanging ones too.
func (s *Server) Close() error {
	err := s.srv.Close()
	<-s.done
	return err
}
