package decompress

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	// maxMemory bounds the memory in bytes of all streams together that need more than plainWindow.
	maxMemory = 64 << 20
	// gcPercent is the garbage collector's target while such a stream runs. With the usual 100
	// percent, garbage could grow by the size of the windows.
	gcPercent = 20
)

// memory is shared by the streams that need much.
type memory struct {
	room *semaphore.Weighted

	mu      sync.Mutex // guards the fields below
	users   int
	percent int // the collector's target without users
}

func newMemory() *memory { return &memory{room: semaphore.NewWeighted(maxMemory)} }

// acquire waits for memory. The caller calls release after it has dropped all references to it.
func (m *memory) acquire(ctx context.Context, size int64) (release func(), err error) {
	size = min(size, maxMemory)
	if err := m.room.Acquire(ctx, size); err != nil {
		return nil, fmt.Errorf("wait for memory: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users++; m.users == 1 {
		m.percent = debug.SetGCPercent(gcPercent)
	}
	return func() { m.release(size) }, nil
}

func (m *memory) release(size int64) {
	// The next stream allocates new memory. Without this, the memory of the last one would still be
	// in use.
	debug.FreeOSMemory()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users--; m.users == 0 {
		debug.SetGCPercent(m.percent)
	}
	m.room.Release(size)
}
