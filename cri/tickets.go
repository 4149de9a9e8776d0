package cri

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

const (
	// ticketLife is the lifetime of a URL, as in k8s.io/cri-streaming.
	ticketLife = time.Minute
	// maxTickets is the number of URLs that wait for their clients at a time, as in
	// k8s.io/cri-streaming.
	maxTickets = 1000
	// maxTicketBytes limits the memory of their requests, which contain command lines.
	maxTicketBytes = 32 << 20
	// tokenBytes makes a URL impossible to guess.
	tokenBytes = 16
)

// tickets holds the requests of URLs that were issued and not used yet.
type tickets struct {
	base url.URL // scheme and host of the URLs

	mu    sync.Mutex
	open  map[string]ticket // by the URL's path
	bytes int               // the size of the requests
}

type ticket struct {
	request proto.Message
	bytes   int
	until   time.Time
}

// issue returns a URL that is valid for one use within ticketLife. It returns ErrResourceExhausted if
// too many URLs wait for their clients.
func (t *tickets) issue(kind string, request proto.Message) (string, error) {
	token := make([]byte, tokenBytes)
	_, _ = rand.Read(token) // never fails
	u := t.base
	u.Path = "/" + kind + "/" + base64.RawURLEncoding.EncodeToString(token)
	now, size := time.Now(), proto.Size(request)
	t.mu.Lock()
	defer t.mu.Unlock()
	for path, old := range t.open {
		if now.After(old.until) {
			t.drop(path)
		}
	}
	switch {
	case len(t.open) >= maxTickets:
		return "", fmt.Errorf("%s: more than %d URLs wait for their clients: %w", kind, maxTickets, errdefs.ErrResourceExhausted)
	case t.bytes+size > maxTicketBytes:
		return "", fmt.Errorf("%s: requests whose URLs wait for their clients exceed %d bytes: %w", kind, maxTicketBytes, errdefs.ErrResourceExhausted)
	}
	t.open[u.Path] = ticket{request: request, bytes: size, until: now.Add(ticketLife)}
	t.bytes += size
	return u.String(), nil
}

// take returns the request of a URL path and invalidates the URL. ok is false for an unknown, used
// or expired URL.
func (t *tickets) take(path string) (request any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.open[path]
	t.drop(path)
	return found.request, ok && time.Now().Before(found.until)
}

// drop forgets a URL. t.mu must be locked.
func (t *tickets) drop(path string) {
	t.bytes -= t.open[path].bytes
	delete(t.open, path)
}
