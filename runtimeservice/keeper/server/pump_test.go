package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/micarun/mica/runtimeservice/keeper/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pumped is a pump with the streams of one container. The test holds the write ends.
type pumped struct {
	pump *pump
	io   *stdio
	out  *os.File
	log  string
}

func newPumped(t testing.TB) *pumped {
	t.Helper()
	p, err := newPump()
	if err != nil {
		t.Fatal(err)
	}
	if p.table, err = newTable(); err != nil {
		t.Fatal(err)
	}
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	x := &pumped{pump: p, out: os.NewFile(uintptr(w), "out"), log: filepath.Join(t.TempDir(), "log")}
	rec := record{ID: "c", Row: p.table.take(), Create: wire.Create{LogPath: x.log}}
	if cerr := p.call(t.Context(), func() {
		if x.io, err = newStdio(p, rec, wire.FDs{wire.FDStdout: r}); err == nil {
			err = x.io.begin(false)
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	t.Cleanup(func() {
		_ = x.out.Close()
		_ = p.call(t.Context(), x.io.close)
		p.close()
		p.table.close()
	})
	return x
}

// drain returns quickly once the writers have closed the output, and within its bound if they do
// not.
func TestDrain(t *testing.T) {
	for name, tc := range map[string]struct {
		closed, busy bool
		atLeast      time.Duration
		atMost       time.Duration // the bound, and some time for a busy machine
	}{
		"closed": {true, false, 0, 30 * time.Second},
		"quiet":  {false, false, drainQuiet / 2, drainMost},
		"busy":   {false, true, drainMost, drainMost + 30*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			took := timeDrain(t, tc.closed, tc.busy)
			for range 4 { // a busy machine may hold up one drain, but not every one
				if took <= tc.atMost {
					break
				}
				took = timeDrain(t, tc.closed, tc.busy)
			}
			if took < tc.atLeast || took > tc.atMost {
				t.Errorf("drain took %v", took)
			}
		})
	}
}

// timeDrain returns how long drain takes. The writers have closed the output, or write all the time,
// or neither.
func timeDrain(t *testing.T, closed, busy bool) time.Duration {
	t.Helper()
	x := newPumped(t)
	if _, err := x.out.WriteString("a\nb"); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for busy {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, _ = x.out.WriteString("more\n")
			}
		}
	}()
	if closed {
		_ = x.out.Close()
	}
	begin := time.Now()
	x.io.drain(t.Context())
	took := time.Since(begin)
	close(stop)
	<-done
	over := false // everything was read, so drain had nothing to wait for
	select {
	case <-x.io.over:
		over = true
	default:
	}
	if over != closed {
		t.Errorf("drain reached the end of the output: %t", over)
	}
	if data, err := os.ReadFile(x.log); err != nil || !bytes.Contains(data, []byte(" stdout F a\n")) {
		t.Errorf("log %q, %v", data, err)
	}
	return took
}

// The memory of logged output is freed.
func TestPendingIsTrimmed(t *testing.T) {
	x := newPumped(t)
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	for range 200 {
		if _, err := x.out.Write(bytes.Repeat(line, 500)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.out.WriteString("rest"); err != nil {
		t.Fatal(err)
	}
	x.io.drain(t.Context())
	var blocks int64
	if err := x.pump.call(t.Context(), func() {
		st, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", x.io.streams[0].pending))
		if err == nil {
			blocks = allocated(st)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if blocks == 0 || blocks > 2<<20 {
		t.Errorf("%d bytes are allocated for 4 pending bytes", blocks)
	}
	if _, err := x.out.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	x.io.drain(t.Context())
	if err := x.pump.call(t.Context(), func() {
		if st, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", x.io.streams[0].pending)); err == nil {
			blocks = allocated(st)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if blocks != 0 {
		t.Errorf("%d bytes are allocated although nothing is pending", blocks)
	}
}

func allocated(st os.FileInfo) int64 {
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func BenchmarkLog(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("line=%d", size), func(b *testing.B) {
			x := newPumped(b)
			data := bytes.Repeat(append(bytes.Repeat([]byte("x"), size-1), '\n'), batch/size)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := x.out.Write(data); err != nil {
					b.Fatal(err)
				}
			}
			_ = x.out.Close()
			x.io.drain(b.Context())
		})
	}
}
