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

// Options are the options of a registry. The zero value is a registry in memory without
// authentication and faults.
type Options struct {
	Dir    string  // directory of the on-disk form; "" keeps everything in memory
	Auth   Auth    // required authentication; the zero value requires none
	Faults []Fault // faults from the start on; see Registry.AddFault
}

// Request is one request that the registry received.
type Request struct {
	Host          string // Host header
	Method        string
	Path          string
	Query         string
	Range         string // Range header
	Authorization string // Authorization header
	Header        http.Header
}

// Registry is an http.Handler that serves the distribution API below /v2/ and, for bearer
// authentication, tokens at /token. It may be used concurrently.
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

// New returns a registry. Dir is created on the first write; disk errors are returned by the call
// that encounters them.
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

// PutBlobFrom stores what src yields up to EOF and returns its sha256 digest. With a Dir the data
// is streamed to disk.
func (r *Registry) PutBlobFrom(src io.Reader) (digest.Digest, error) {
	return r.store.putBlob(src)
}

// PutManifest stores a manifest or index in repo under its digest and, when ref is not empty and
// not a digest, under the tag ref. repo is a name without host, such as "library/busybox". An empty
// mediaType is served without a Content-Type.
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

// Digest returns the digest that a tag refers to. For a missing tag, the error is fs.ErrNotExist.
func (r *Registry) Digest(repo, tag string) (digest.Digest, error) { return r.store.tag(repo, tag) }

// AddFault adds a fault. If several faults match a request, the oldest that is not used up applies.
func (r *Registry) AddFault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &faultState{Fault: f})
}

// ClearFaults removes all faults. Requests that already hang do so until their client disconnects.
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

// ResetRequests deletes the list of requests.
func (r *Registry) ResetRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// Server is a listening registry.
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
		// Serve returns ErrServerClosed after Close; clients notice any other error.
		_ = s.srv.Serve(ln)
	}()
	return s, nil
}

// Close stops the server and closes every connection, including hanging ones.
func (s *Server) Close() error {
	err := s.srv.Close()
	<-s.done
	return err
}
