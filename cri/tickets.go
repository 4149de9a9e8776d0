package cri

import (
	"net/url"
	"sync"
	"time"
)

// ticketLife is how long a URL may be used, as in k8s.io/cri-streaming.
const ticketLife = time.Minute

// tickets are the requests behind the URLs that were given out and not used yet.
type tickets struct {
	mu   sync.Mutex
	open map[string]ticket // by the URL's path
}

type ticket struct {
	request any
	until   time.Time
}

// add makes address good for one use.
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

// take returns the request behind a path, once.
func (t *tickets) take(path string) (request any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.open[path]
	delete(t.open, path)
	return found.request, ok && time.Now().Before(found.until)
}
