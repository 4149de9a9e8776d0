package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/micarun/mica/internal/jsonfile"
	"github.com/micarun/mica/overlay"
)

// containerUsageAge is the age of the usage of writable layers from which a request for it begins a
// new measurement.
const containerUsageAge = 30 * time.Second

// usage measures the disk usage of layers in the background. A committed layer never changes, so it
// is measured once, and cri/image-usage.json keeps the result over restarts. Writable layers are
// measured on request, and cri/container-usage.json keeps their last sum.
type usage struct {
	root   string
	layers *overlay.Store

	wake  chan struct{} // begins another round of measurement
	first chan struct{} // closed after the writable layers have been measured once
	stop  context.CancelFunc
	done  chan struct{}

	mu         sync.Mutex // guards the fields below
	measured   map[digest.Digest]overlay.Usage
	containers overlay.Usage
	asked      bool      // containers was requested after measuredAt
	measuredAt time.Time // of containers
}

// openUsage reads the files and begins to measure the other layers. It takes only the logger from
// ctx.
func openUsage(ctx context.Context, root string, layers *overlay.Store) (*usage, error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	u := &usage{
		root: root, layers: layers, stop: stop,
		wake: make(chan struct{}, 1), first: make(chan struct{}), done: make(chan struct{}),
		measured: make(map[digest.Digest]overlay.Usage),
	}
	if err := os.MkdirAll(filepath.Dir(u.path()), 0o700); err != nil {
		stop()
		return nil, fmt.Errorf("open usage cache: %w", err)
	}
	// The file is a cache: if it cannot be read, all layers are measured again.
	if err := jsonfile.Read(u.path(), &u.measured); err != nil {
		u.measured = make(map[digest.Digest]overlay.Usage)
	}
	var last writableUsage
	if err := jsonfile.Read(u.writablePath(), &last); err == nil && !last.At.IsZero() {
		u.containers, u.measuredAt = last.Usage, last.At
		close(u.first)
	}
	u.changed()
	go u.loop(ctx)
	return u, nil
}

// writableUsage is the usage of all writable layers at a time.
type writableUsage struct {
	Usage overlay.Usage
	At    time.Time
}

func (u *usage) path() string         { return filepath.Join(u.root, "cri", "image-usage.json") }
func (u *usage) writablePath() string { return filepath.Join(u.root, "cri", "container-usage.json") }

// close stops measuring.
func (u *usage) close() error {
	u.stop()
	<-u.done
	return nil
}

// changed begins a measurement after layers were added or removed.
func (u *usage) changed() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// images returns the usage of the read-only layers. A layer that is not measured yet counts with
// the sum of its file sizes and without inodes.
func (u *usage) images() overlay.Usage {
	var sum overlay.Usage
	list := u.layers.Layers()
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range list {
		if m, ok := u.measured[l.ID]; ok {
			sum.Bytes += m.Bytes
			sum.Inodes += m.Inodes
		} else {
			sum.Bytes += uint64(max(0, l.Size))
		}
	}
	return sum
}

// writable returns the last measured usage of the writable layers, and its time. Before the first
// measurement it begins one and waits at most patience. The time is zero if there is no result
// then. The error is ctx's.
func (u *usage) writable(ctx context.Context, patience time.Duration) (overlay.Usage, time.Time, error) {
	if u.lastWritable().IsZero() {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-u.first:
		case <-timer.C:
		case <-u.done:
		case <-ctx.Done():
			return overlay.Usage{}, time.Time{}, ctx.Err()
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.containers, u.measuredAt, nil
}

// lastWritable returns the time of the last measurement of the writable layers. It begins another
// measurement if that was long ago.
func (u *usage) lastWritable() time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.measuredAt) > containerUsageAge {
		u.asked = true
		u.changed()
	}
	return u.measuredAt
}

func (u *usage) loop(ctx context.Context) {
	defer close(u.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.wake:
		}
		if err := u.measure(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Measuring the disk usage of layers failed")
		}
	}
}

func (u *usage) measure(ctx context.Context) error {
	u.mu.Lock()
	known, containers := maps.Clone(u.measured), u.asked
	u.mu.Unlock()
	now := make(map[digest.Digest]overlay.Usage)
	var errs []error
	for _, l := range u.layers.Layers() {
		m, ok := known[l.ID]
		if !ok {
			var err error
			m, err = treeUsage(ctx, filepath.Join(u.root, "overlay2", l.CacheID, "diff"))
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since; the removal begins another round
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		now[l.ID] = m
	}
	if !maps.Equal(known, now) {
		u.mu.Lock()
		u.measured = now
		u.mu.Unlock()
		errs = append(errs, jsonfile.Write(u.path(), now))
	}
	if containers {
		errs = append(errs, u.measureContainers(ctx))
	}
	return errors.Join(errs...)
}

func (u *usage) measureContainers(ctx context.Context) error {
	var sum overlay.Usage
	for _, rw := range u.layers.RWs() {
		// A layer that is removed meanwhile takes nothing.
		if m, err := u.layers.Usage(ctx, rw.ID); err == nil {
			sum.Bytes += m.Bytes
			sum.Inodes += m.Inodes
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	u.mu.Lock()
	if u.measuredAt.IsZero() {
		close(u.first)
	}
	u.containers, u.measuredAt, u.asked = sum, now, false
	u.mu.Unlock()
	return jsonfile.Write(u.writablePath(), writableUsage{sum, now})
}

// treeUsage returns the allocated bytes and the inodes of a tree. It counts hard links once.
func treeUsage(ctx context.Context, dir string) (overlay.Usage, error) {
	var sum overlay.Usage
	seen := make(map[uint64]bool) // inodes with several links; a layer is in one file system
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !e.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		sum.Bytes += uint64(st.Blocks) * 512
		sum.Inodes++
		return nil
	})
	return sum, err
}
