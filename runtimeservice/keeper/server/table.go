package server

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// table is shared memory with each container's position in its log: how many bytes of pending
// output are in the log, and the log's size at that point. The daemon's copy of the descriptor
// keeps it alive when the keeper dies.
//
// This order makes sure that output is logged exactly once:
//
//   - splice moves output from the container's pipe to the stream's pending memfd. Even SIGKILL cannot
//     separate the move from the growth of the file.
//   - The keeper appends the lines to the log.
//   - One store of one word makes the new position valid.
//
// A keeper that finds the log longer than in the table knows that the store is missing. It
// truncates the log to the table's size and writes those lines again.
type table struct {
	fd  int
	mem []byte

	mu   sync.Mutex // guards used
	used map[int]bool
}

const (
	tableRow  = 128
	tableRows = 8192
)

// progress is one container's row.
type progress struct {
	size int64    // log size in bytes
	file uint64   // inode of the log
	done [2]int64 // bytes of each pending memfd that are in the log
}

func newTable() (*table, error) {
	fd, err := unix.MemfdCreate("mica-keeper-table", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create table: %w", err)
	}
	if err := unix.Ftruncate(fd, tableRow*tableRows); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("size table: %w", err)
	}
	t, err := openTable(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return t, err
}

// openTable maps a table made by an earlier keeper.
func openTable(fd int) (*table, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != tableRow*tableRows {
		return nil, fmt.Errorf("open table: %d bytes, %w", st.Size, orInvalid(err))
	}
	mem, err := unix.Mmap(fd, 0, tableRow*tableRows, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map table: %w", err)
	}
	return &table{fd: fd, mem: mem, used: map[int]bool{}}, nil
}

func orInvalid(err error) error {
	if err == nil {
		return unix.EINVAL
	}
	return err
}

// take reserves a free row and clears it; -1 if all are in use.
func (t *table) take() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for row := range tableRows {
		if !t.used[row] {
			t.used[row] = true
			clear(t.mem[row*tableRow : (row+1)*tableRow])
			return row
		}
	}
	return -1
}

// claim reserves the row of an existing container.
func (t *table) claim(row int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if row < 0 || row >= tableRows || t.used[row] {
		return false
	}
	t.used[row] = true
	return true
}

func (t *table) release(row int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.used, row)
}

// put replaces the row's content atomically. Only one goroutine may call it.
func (t *table) put(row int, p progress) {
	which := t.which(row)
	next := 1 - which.Load()&1
	b := t.side(row, next)
	binary.NativeEndian.PutUint64(b[0:], uint64(p.size))
	binary.NativeEndian.PutUint64(b[8:], p.file)
	binary.NativeEndian.PutUint64(b[16:], uint64(p.done[0]))
	binary.NativeEndian.PutUint64(b[24:], uint64(p.done[1]))
	which.Store(next)
}

func (t *table) get(row int) progress {
	b := t.side(row, t.which(row).Load()&1)
	return progress{
		size: int64(binary.NativeEndian.Uint64(b[0:])),
		file: binary.NativeEndian.Uint64(b[8:]),
		done: [2]int64{int64(binary.NativeEndian.Uint64(b[16:])), int64(binary.NativeEndian.Uint64(b[24:]))},
	}
}

func (t *table) which(row int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&t.mem[row*tableRow]))
}

func (t *table) side(row int, n uint32) []byte {
	from := row*tableRow + 32 + int(n)*32
	return t.mem[from : from+32]
}
