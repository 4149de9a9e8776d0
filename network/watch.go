package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the directory must be quiet before it is read, so
	// that a file written in pieces is read once, whole.
	settle = 50 * time.Millisecond
	// retry is how often a directory that went away is looked for.
	retry = time.Second
)

// watcher calls a function after every change in a directory, and makes the
// directory again when it went away.
type watcher struct {
	dir    string
	notify *fsnotify.Watcher
	cancel context.CancelFunc
	done   sync.WaitGroup

	// mu guards extra.
	mu sync.Mutex
	// extra is the directory that the plugins of the network come from, "" if
	// there is none.
	extra string
}

func newWatcher(dir string) (*watcher, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := notify.Add(dir); err != nil {
		return nil, errors.Join(err, notify.Close())
	}
	return &watcher{dir: filepath.Clean(dir), notify: notify, cancel: func() {}}, nil
}

// start watches until close, calling changed from one goroutine.
func (w *watcher) start(ctx context.Context, changed func(context.Context)) {
	ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	w.done.Go(func() { w.run(ctx, changed) })
}

func (w *watcher) close() error {
	w.cancel()
	err := w.notify.Close()
	w.done.Wait()
	return err
}

func (w *watcher) run(ctx context.Context, changed func(context.Context)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-w.notify.Events:
			if event.Name == w.dir && event.Has(fsnotify.Remove|fsnotify.Rename) {
				lost = true
			}
			timer.Reset(settle)
		case <-w.notify.Errors: // events were lost: read the directory
			timer.Reset(settle)
		case <-timer.C:
			if lost {
				lost = !w.find()
			}
			if lost {
				timer.Reset(retry)
			}
			changed(ctx)
		}
	}
}

// find makes the directory again and watches it.
func (w *watcher) find() bool {
	return os.MkdirAll(w.dir, 0o755) == nil && w.notify.Add(w.dir) == nil
}

// follow also watches the directory beside c's file that may hold plugins of
// its network.
func (w *watcher) follow(c *conf) {
	extra := ""
	if c.list != nil && c.source != "" && !c.list.LoadOnlyInlinedPlugins {
		extra = filepath.Join(w.dir, c.list.Name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.extra != "" && w.extra != extra {
		_ = w.notify.Remove(w.extra)
	}
	w.extra = extra
	if extra != "" {
		_ = w.notify.Add(extra) // usually not there
	}
}
