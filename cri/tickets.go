package cri

import (
	"net/url"
	"sync"
	"time"
)

// ticketLife is the lifetime of a URL, as in k8s.io/cri-streaming.
const ticketLife = time.Minute

// tickets holds the requests of URLs that were issued and not used yet.
type tickets struct {
	mu   sync.Mutex
	open map[string]ticket // by the URL's path
}

type ticket struct {
	request any
	until   time.Time
}

// add makes a URL valid for one use within ticketLife.
func (t *tickets) add(address string, request any) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for path, old := range t.open {
		if now.After(old.until) {
			delete(t.open, path)
		}
	}
	t.open[u.Path] = ticket{request: request, until: now.Add(ticketLife)}
	return nil
}

// take returns the request of a URL path and invalidates the URL. ok is false for an unknown, used
// or expired URL.
func (t *tickets) take(path string) (request any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.open[path]
	delete(t.open, path)
	return found.request, ok && time.Now().Before(found.until)
}
