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
	// settle is how long the directory must be quiet before it is read, so
	// that a file written in pieces is read once, whole.
	settle = 50 * time.Millisecond
	// retry is how often a directory that went away is looked for.
	retry = time.Second
)

// poll is how often the directories are looked at where the kernel does not tell
// of changes: as quick as somebody who waits for a network expects, and cheap.
const poll = time.Second

// watcher calls a function after every change in a directory, and makes the
// directory again when it went away. It has the kernel tell it, or, where the
// node has no inotify instances or watches left, looks again and again.
type watcher struct {
	dir    string
	notify *fsnotify.Watcher // nil where the kernel cannot tell
	cancel context.CancelFunc
	done   sync.WaitGroup

	// mu guards what follows.
	mu sync.Mutex
	// extra is the directory that the plugins of the network come from, "" if
	// there is none.
	extra string
	// blind is why the kernel does not tell of all changes; nil if it does.
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

// exhausted says whether the user has no inotify instance (or the process no
// descriptor) left, or no watch.
func exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)
}

// start watches until close, calling changed from one goroutine.
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
		case <-failures: // events were lost: read the directory
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
	old := w.extra
	w.extra = extra
	if w.notify == nil {
		return
	}
	if old != "" && old != extra {
		_ = w.notify.Remove(old)
	}
	if extra != "" {
		if err := w.notify.Add(extra); exhausted(err) { // usually it is not there
			w.blind = err
		}
	}
}

// looker looks at a watcher's directories where the kernel does not tell of
// changes.
type looker struct {
	w      *watcher
	ticker *time.Ticker // nil where the kernel tells
	seen   string       // as of the last look
}

// update begins to look, once, if the kernel does not tell of changes.
func (l *looker) update(ctx context.Context) {
	l.w.mu.Lock()
	why := l.w.blind
	l.w.mu.Unlock()
	if why == nil || l.ticker != nil {
		return
	}
	klog.FromContext(ctx).Error(why, "Kernel does not tell of changes of the network configuration, looking for them instead; see fs.inotify.max_user_instances and max_user_watches",
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

// changed says whether the directories look otherwise than the last time.
func (l *looker) changed() bool {
	now := l.look()
	changed := now != l.seen
	l.seen = now
	return changed
}

// look describes every file of the directories, and makes the first where it is
// gone.
func (l *looker) look() string {
	_ = os.MkdirAll(l.w.dir, 0o755) // an error shows in the directory's absence
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
