package imageservice

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	// maxDictionaries bounds the memory of all streams together that need more than plainZstdWindow. The
	// others wait. A stream that needs more than this waits until it is the only one.
	maxDictionaries = 64 << 20
	// dictionaryPercent is the garbage collector's target while such a stream runs. With the usual
	// 100 percent, the dictionary would let garbage grow by as much as itself.
	dictionaryPercent = 20
)

// dictionaries shares memory among the streams that need much.
type dictionaries struct {
	room *semaphore.Weighted

	mu      sync.Mutex // guards what follows
	users   int
	percent int // the collector's target without users
}

func newDictionaries() *dictionaries {
	return &dictionaries{room: semaphore.NewWeighted(maxDictionaries)}
}

// acquire waits for memory. The caller calls release when it has no reference to the memory any more.
func (d *dictionaries) acquire(ctx context.Context, size int64) (release func(), err error) {
	size = min(size, maxDictionaries)
	if err := d.room.Acquire(ctx, size); err != nil {
		return nil, fmt.Errorf("wait for memory: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users++; d.users == 1 {
		d.percent = debug.SetGCPercent(dictionaryPercent)
	}
	return func() { d.release(size) }, nil
}

func (d *dictionaries) release(size int64) {
	// The next stream gets new memory: without this, that of the last one would still be in use.
	debug.FreeOSMemory()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users--; d.users == 0 {
		debug.SetGCPercent(d.percent)
	}
	d.room.Release(size)
}
