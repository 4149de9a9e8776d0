package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// settle is how long the directory must be quiet before it is read, so that a file written in
	// pieces is read once, complete.
	settle = 50 * time.Millisecond
	// retry is the interval at which a removed directory is created again.
	retry = time.Second
)

// poll is the polling interval where inotify is unavailable. It is short enough for an operator who
// waits for a network, and cheap.
const poll = time.Second

// watcher calls a function after every change in a directory, and recreates the directory if it is
// removed. It uses inotify, or polling if the node has no inotify instances or watches left.
type watcher struct {
	dir    string
	notify *fsnotify.Watcher // nil if inotify is unavailable
	cancel context.CancelFunc
	done   sync.WaitGroup

	// mu guards the fields below.
	mu sync.Mutex
	// extra is the directory with the separate plugin files of the network; "" if there is none.
	extra string
	// blind is why inotify does not report all changes; nil if it does.
	blind error
}

func newWatcher(dir string) (*watcher, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	w := &watcher{dir: filepath.Clean(dir), cancel: func() {}}
	notify, err := fsnotify.NewWatcher()
	if err == nil {
		err = notify.Add(dir)
	}
	switch {
	case err == nil:
		w.notify = notify
	case !exhausted(err):
		if notify != nil {
			err = errors.Join(err, notify.Close())
		}
		return nil, err
	case notify != nil:
		_ = notify.Close()
	}
	w.blind = err
	return w, nil
}

// exhausted reports whether an inotify limit is reached: instances, watches, file descriptors or
// memory.
func exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)
}

// start watches until close. It calls changed from a single goroutine.
func (w *watcher) start(ctx context.Context, changed func(context.Context)) {
	ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	w.done.Go(func() { w.run(ctx, changed) })
}

func (w *watcher) close() error {
	w.cancel()
	var err error
	if w.notify != nil {
		err = w.notify.Close()
	}
	w.done.Wait()
	return err
}

func (w *watcher) run(ctx context.Context, changed func(context.Context)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	var events chan fsnotify.Event
	var failures chan error
	if w.notify != nil {
		events, failures = w.notify.Events, w.notify.Errors
	}
	look := looker{w: w}
	defer look.stop()
	look.update(ctx)
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-events:
			if event.Name == w.dir && event.Has(fsnotify.Remove|fsnotify.Rename) {
				lost = true
			}
			timer.Reset(settle)
		case <-failures: // the queue overflowed: read the directory
			timer.Reset(settle)
		case <-look.tick():
			if look.changed() {
				timer.Reset(settle)
			}
		case <-timer.C:
			if lost {
				lost = !w.find()
			}
			if lost {
				timer.Reset(retry)
			}
			changed(ctx)
			look.update(ctx)
		}
	}
}

// find recreates the directory and watches it.
func (w *watcher) find() bool {
	return os.MkdirAll(w.dir, 0o755) == nil && w.notify.Add(w.dir) == nil
}

// follow also watches the directory beside c's file that may hold separate plugin files of the
// network.
func (w *watcher) follow(c *conf) {
	extra := ""
	if c.list != nil && c.source != "" && !c.list.LoadOnlyInlinedPlugins {
		extra = filepath.Join(w.dir, c.list.Name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.extra
	w.extra = extra
	if w.notify == nil {
		return
	}
	if old != "" && old != extra {
		_ = w.notify.Remove(old)
	}
	if extra != "" {
		if err := w.notify.Add(extra); exhausted(err) { // the directory usually does not exist
			w.blind = err
		}
	}
}

// looker polls a watcher's directories if inotify does not report all changes.
type looker struct {
	w      *watcher
	ticker *time.Ticker // nil if inotify reports all changes
	seen   string       // the directories' contents at the last poll
}

// update starts polling, once, if inotify does not report all changes.
func (l *looker) update(ctx context.Context) {
	l.w.mu.Lock()
	why := l.w.blind
	l.w.mu.Unlock()
	if why == nil || l.ticker != nil {
		return
	}
	klog.FromContext(ctx).Error(why, "Cannot watch the network configuration by inotify, polling it instead; see fs.inotify.max_user_instances and max_user_watches",
		"dir", l.w.dir, "interval", poll)
	l.ticker = time.NewTicker(poll)
	l.seen = l.look()
}

func (l *looker) tick() <-chan time.Time {
	if l.ticker == nil {
		return nil
	}
	return l.ticker.C
}

func (l *looker) stop() {
	if l.ticker != nil {
		l.ticker.Stop()
	}
}

// changed reports whether the directories changed since the last poll.
func (l *looker) changed() bool {
	now := l.look()
	changed := now != l.seen
	l.seen = now
	return changed
}

// look returns a description of every file in the directories. It recreates the configuration
// directory if it is missing.
func (l *looker) look() string {
	_ = os.MkdirAll(l.w.dir, 0o755) // ReadDir below fails, too
	l.w.mu.Lock()
	dirs := []string{l.w.dir, l.w.extra}
	l.w.mu.Unlock()
	var seen strings.Builder
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		fmt.Fprintf(&seen, "%s %v\n", dir, err)
		for _, e := range entries {
			if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil {
				fmt.Fprintf(&seen, "%q %d %d %v\n", e.Name(), info.Size(), info.ModTime().UnixNano(), info.Sys().(*syscall.Stat_t).Ino)
			}
		}
	}
	return seen.String()
}
