package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/micarun/mica/internal/patience"
)

// received is a decompressed input that counts its compressed bytes.
type received struct {
	*zstd.Decoder
	in    io.Reader
	count atomic.Int64
}

func (r *received) Received() int64 { return r.count.Load() }
func (r *received) Repeated() int64 { return 0 }
func (r *received) ByteCost() int64 { return 0 }

type receivedInput struct{ *received }

func (c receivedInput) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.count.Add(int64(n))
	return n, err
}

func newReceived(tb testing.TB, blob []byte) *received {
	tb.Helper()
	r := &received{in: bytes.NewReader(blob)}
	d, err := zstd.NewReader(receivedInput{r}, zstd.WithDecoderConcurrency(1))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.Close)
	r.Decoder = d
	return r
}

// tarWriter writes the tar of a hostile layer.
type tarWriter struct {
	tb testing.TB
	*tar.Writer
	raw io.Writer
}

func (w tarWriter) put(e entry) {
	w.tb.Helper()
	if e.Format == tar.FormatUnknown {
		e.Format = tar.FormatGNU
	}
	e.ModTime = e.ModTime.Truncate(time.Second)
	if err := w.WriteHeader(&e.Header); err != nil {
		w.tb.Fatal(err)
	}
	if _, err := io.WriteString(w, e.body); err != nil {
		w.tb.Fatal(err)
	}
}

func compressLayer(tb testing.TB, fill func(tarWriter)) []byte {
	tb.Helper()
	var blob bytes.Buffer
	z, err := zstd.NewWriter(&blob, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		tb.Fatal(err)
	}
	w := tar.NewWriter(z)
	fill(tarWriter{tb, w, z})
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return blob.Bytes()
}

// cost is the processor time and memory of a call.
type cost struct {
	cpu  time.Duration
	heap uint64 // peak increase, in bytes
}

func measureCost(f func()) (c cost) {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	before, peak := sample[0].Value.Uint64(), uint64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			metrics.Read(sample)
			peak = max(peak, sample[0].Value.Uint64())
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	start := cpuTime()
	f()
	c.cpu = cpuTime() - start
	close(stop)
	<-stopped
	c.heap = max(peak, before) - before
	return c
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// hostileLayers are small when compressed, but would take much time or memory without limits. want
// is a part of the error, "" for a layer that is accepted.
var hostileLayers = map[string]struct {
	want string
	fill func(w tarWriter)
}{
	"link targets": {"more memory", func(w tarWriter) {
		for i := range 2_000 {
			w.put(symlink(fmt.Sprint("l", i), fmt.Sprint(strings.Repeat("x", 3_990), i)))
		}
	}},
	"chains of links in turns": {"more work", func(w tarWriter) {
		linkChain(w)
		for i := range 100 {
			w.put(file(fmt.Sprintf("l%d/f%d", 38+i%2, i), ""))
		}
	}},
	"one chain of links": {"", func(w tarWriter) {
		linkChain(w)
		for i := range 1_000 {
			w.put(file(fmt.Sprintf("l39/f%d", i), ""))
		}
	}},
	"hard links through chains of links": {"more work", func(w tarWriter) {
		linkChain(w)
		w.put(file("d/f", ""))
		for i := range 100 {
			w.put(hardlink(fmt.Sprint(i), "l39/f"))
		}
	}},
	"empty files": {"more work", func(w tarWriter) {
		for i := range 6_000 {
			w.put(file(fmt.Sprintf("%d/%d", i/1000, i), ""))
		}
	}},
	"one name": {"more", func(w tarWriter) {
		for range 6_000 {
			w.put(file("a", ""))
		}
	}},
	"replaced below a long name": {"more memory", func(w tarWriter) {
		for range 2_000 {
			w.put(file(strings.Repeat("d/", 2_000)+"f", "x"))
		}
	}},
	"deep directories in turns": {"more", func(w tarWriter) {
		for i := range 500 {
			w.put(file(fmt.Sprintf("%s%d/%d", strings.Repeat("d/", 2_000), i%100, i), ""))
		}
	}},
	"implied directories": {"more memory", func(w tarWriter) {
		for i := range 200 {
			w.put(file(strings.Repeat(fmt.Sprintf("%d/", i), 600)+"f", ""))
		}
	}},
	"records": {"more work", func(w tarWriter) {
		records := map[string]string{}
		for i := range 20_000 {
			records[fmt.Sprint("MICA.", i)] = "0"
		}
		for i := range 20 {
			w.put(file(fmt.Sprint(i), "").with(func(h *tar.Header) { h.PAXRecords, h.Format = records, tar.FormatPAX }))
		}
	}},
	"attributes": {"more work", func(w tarWriter) {
		records := map[string]string{}
		for i := range 250 {
			records[fmt.Sprint("SCHILY.xattr.user.", i)] = ""
		}
		for i := range 100 {
			w.put(file(fmt.Sprint(i), "").with(func(h *tar.Header) { h.PAXRecords, h.Format = records, tar.FormatPAX }))
		}
	}},
	"zeros": {"more work", func(w tarWriter) { putZeros(w, "zeros", 100) }},
	"text":  {"more work", func(w tarWriter) { putFile(w, "text", 100, []byte(strings.Repeat("text ", 1<<20))) }},
	"text through a link": {"more work", func(w tarWriter) {
		w.put(dir("d"))
		w.put(symlink("l", "d"))
		putFile(w, "l/text", 30, []byte(strings.Repeat("text ", 1<<20)))
	}},
	"zeros through a link": {"more work", func(w tarWriter) {
		w.put(dir("d"))
		w.put(symlink("l", "d"))
		putZeros(w, "l/zeros", 30)
	}},
	"zeros of AUFS": {"more work", func(w tarWriter) { putZeros(w, ".wh..wh.plnk/zeros", 30) }},
	"zeros replaced": {"more work", func(w tarWriter) {
		putZeros(w, "zeros", 30)
		w.put(file("zeros", ""))
	}},
	"zeros after the end": {"more work", func(w tarWriter) {
		if _, err := w.raw.Write(make([]byte, 30<<20)); err != nil {
			w.tb.Fatal(err)
		}
	}},
	"one name of many": {"more", func(w tarWriter) {
		for i := range 2_000 {
			w.put(file(fmt.Sprint(i), "x"))
		}
		w.put(file("0", "y"))
	}},
	"whiteouts": {"more", func(w tarWriter) {
		for i := range 6_000 {
			w.put(file(fmt.Sprintf("%d/.wh.%d", i/1000, i), ""))
		}
	}},
	"opaque directories": {"more", func(w tarWriter) {
		for i := range 6_000 {
			w.put(file(fmt.Sprintf("%d/.wh..wh..opq", i%1000), ""))
		}
	}},
	"directories": {"more", func(w tarWriter) {
		for i := range 6_000 {
			w.put(dir(fmt.Sprintf("%d/%d/%d", i/1000, i/10, i)))
		}
	}},
	"files of AUFS": {"more", func(w tarWriter) {
		for i := range 6_000 {
			w.put(file(fmt.Sprintf(".wh..wh.plnk/%d", i), ""))
		}
	}},
	"files and directories in turns": {"", func(w tarWriter) {
		for i := range 200 {
			if i%2 == 0 {
				w.put(file("d/x", "1"))
			} else {
				w.put(dir("d/x"))
				w.put(file("d/x/y", "2"))
			}
		}
	}},
}

func putZeros(w tarWriter, name string, mebibytes int64) {
	putFile(w, name, mebibytes, make([]byte, 1<<20))
}

// putFile writes a file that repeats data up to a number of MiB.
func putFile(w tarWriter, name string, mebibytes int64, data []byte) {
	e := file(name, "")
	e.Size = mebibytes << 20
	w.put(e)
	for left := e.Size; left > 0; {
		n := min(left, int64(len(data)))
		if _, err := w.Write(data[:n]); err != nil {
			w.tb.Fatal(err)
		}
		left -= n
	}
}

// linkChain writes 40 links to the directory d, each with 2,000 components.
func linkChain(w tarWriter) {
	w.put(dir("d"))
	w.put(symlink("l0", "d"))
	for i := range 39 {
		w.put(symlink(fmt.Sprint("l", i+1), strings.Repeat("./", 2_000)+fmt.Sprint("l", i)))
	}
}

// TestHostileLayers: the transferred bytes of a layer limit its time and memory, independent of its
// content. Beyond the limit it is refused with a reason.
func TestHostileLayers(t *testing.T) {
	for name, c := range hostileLayers {
		t.Run(name, func(t *testing.T) {
			blob := compressLayer(t, c.fill)
			s := memoryStore(t)
			s.floors.work, s.floors.kept = s.floors.work/20, s.floors.kept/100
			// By default, garbage doubles the memory in use before the next collection.
			defer debug.SetGCPercent(debug.SetGCPercent(50))
			var took cost
			for range 5 { // a busy machine delays the collector
				took = measureCost(func() { applyHostile(t, s, blob, c.want) })
				t.Logf("%d bytes: %v of CPU, %d MB of heap", len(blob), took.cpu, took.heap>>20)
				if took.heap <= 32<<20 {
					break
				}
			}
			if took.heap > 32<<20 && !raceDetector { // which delays the collector much
				t.Errorf("took %d MB of heap", took.heap>>20)
			}
			noDrafts(t, s)
		})
	}
}

// applyHostile applies a layer that is refused with want, or accepted if want is "".
func applyHostile(t *testing.T, s *Store, blob []byte, want string) {
	t.Helper()
	d, err := s.Apply(context.Background(), newReceived(t, blob))
	switch {
	case want == "" && err != nil:
		t.Error(err)
	case want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want)):
		t.Errorf("got %v, want an invalid argument with %q", err, want)
	}
	if err == nil {
		if err := d.Discard(); err != nil {
			t.Error(err)
		}
	}
}

// busyFactor is the maximum ratio of a layer's processor time to its counted work on a busy machine.
// The weights allow an image of 10 MB six seconds; the promise is ten seconds.
const busyFactor = 1.5

// TestWeightsAreHonest: a layer takes at most busyFactor times its counted processor time on a
// journaled ext4, including the removal of its draft.
func TestWeightsAreHonest(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes most of the time")
	}
	s := loopStore(t, 2<<30, "mkfs.ext4", "-q", "-F")
	for name, c := range hostileLayers {
		t.Run(name, func(t *testing.T) {
			blob := compressLayer(t, c.fill)
			var took, counted, limit time.Duration
			for range 5 { // other work of the process and the machine may be measured too
				image := s.NewAllowance()
				took = measureCost(func() {
					d, err := s.ApplyWithin(t.Context(), image, newReceived(t, blob))
					if err == nil {
						err = d.Discard()
					}
					if err != nil && !errdefs.IsInvalidArgument(err) {
						t.Fatal(err)
					}
				}).cpu
				counted = time.Duration(image.work.Load())
				limit = patience.Of(time.Duration(busyFactor * float64(counted)))
				if took <= limit {
					break
				}
			}
			t.Logf("took %v, counted %v: %.2f", took, counted, took.Seconds()/counted.Seconds())
			if took > limit {
				t.Errorf("took %v of processor time, counted are %v", took, counted)
			}
		})
	}
}

// TestImpliedDirectoriesOfManyLayers: the number of lookups for implied directories is limited.
// Nothing is looked up below a directory that does not exist.
func TestImpliedDirectoriesOfManyLayers(t *testing.T) {
	ctx := context.Background()
	s := memoryStore(t)
	layer := func(name string) *Draft {
		var entries []entry
		for i := range 100 {
			entries = append(entries, file(fmt.Sprintf("usr/%s%d/a/b/c/f", name, i), ""))
		}
		d, err := s.Apply(ctx, bytes.NewReader(buildTar(t, entries...)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var few, many []*Draft
	for i := range 5 {
		few = append(few, layer(fmt.Sprint("a", i)))
	}
	allow := func(drafts []*Draft) { // 2,000 more lookups than their current work
		l := s.newLookups(drafts)
		s.floors.work += l.work - l.may + 2_000*costLookup
	}
	allow(few)
	if _, err := s.Commit(ctx, "", few...); err != nil {
		t.Errorf("Commit of %d layers: %v", len(few), err)
	}
	s.floors.work = workFloor
	for i := range 10 {
		many = append(many, layer(fmt.Sprint("b", i)))
	}
	allow(many)
	if _, err := s.Commit(ctx, "", many...); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "lookups") {
		t.Errorf("Commit of %d layers: %v, want too many lookups", len(many), err)
	}
	for _, d := range many {
		if err := d.Discard(); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.SweepUnused(ctx, nil); err != nil {
		t.Error(err)
	}
}

// TestLargeHeadersDoNotQueue: headers that wait for the packer take limited memory.
func TestLargeHeadersDoNotQueue(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	p, err := startPacker(ctx, cancel, t.TempDir()+"/split", new(sync.Pool))
	if err != nil {
		t.Fatal(err)
	}
	waits := &fileJob{done: make(chan struct{})}
	p.add(packItem{name: "f", job: waits, size: 1})
	var queued atomic.Int64
	go func() {
		defer p.close()
		for range 100 {
			p.segment(make([]byte, 1<<20))
			queued.Add(1)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	if n := queued.Load(); n > 4 {
		t.Errorf("%d MiB of headers wait for a file", n)
	}
	close(waits.done)
	p.running.Wait()
	if err := context.Cause(ctx); err != nil {
		t.Error(err)
	}
}

// randomEntries makes entries that conflict with each other: few names, of any kind, long, deep and
// through links.
func randomEntries(r *rand.Rand) []entry {
	names := []string{"a", "b", "c", strings.Repeat("n", 200)}
	name := func() string {
		var parts []string
		for range 1 + r.IntN(1+r.IntN(12)) {
			parts = append(parts, names[r.IntN(len(names))])
		}
		return strings.Join(parts, "/")
	}
	var entries []entry
	for range 50 + r.IntN(400) {
		var e entry
		switch r.IntN(8) {
		case 0:
			e = symlink(name(), strings.Repeat("./", r.IntN(1500))+name())
		case 1:
			e = hardlink(name(), name())
		case 2:
			e = dir(name())
		case 3:
			e = file(".wh..wh.plnk/"+names[r.IntN(len(names))], "aside")
		case 4:
			n := name()
			at := strings.LastIndexByte(n, '/') + 1
			e = file(n[:at]+whiteoutPrefix+n[at:], "")
		default:
			e = file(name(), strings.Repeat("x", r.IntN(2000)))
		}
		entries = append(entries, e)
	}
	return entries
}

// TestBudgetIsHonest: for random layers, the counted work stays within the allowance for their
// bytes, and the counted memory is at least the memory in use.
func TestBudgetIsHonest(t *testing.T) {
	s := memoryStore(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		for taken := randomEntries(r); len(taken) > 0; taken = taken[:len(taken)/2] { // until the rest is accepted

			x, err := applyCounted(t, s, buildTar(t, taken...))
			if err == nil || errdefs.IsInvalidArgument(err) {
				checkCounts(t, x)
			} else {
				t.Error(err)
			}
			if err == nil {
				break
			}
		}
	}
	noDrafts(t, s)
}

func applyCounted(t *testing.T, s *Store, data []byte) (*extractor, error) {
	t.Helper()
	d := &Draft{CacheID: newID(), store: s}
	s.setBusy(d.CacheID, true)
	if err := s.makeDraft(d.CacheID); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(s.paths.diff(d.CacheID), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	in := &countedInput{Reader: bytes.NewReader(data)}
	d.budget = newAllowance(floors{work: 1 << 30, kept: 1 << 20}).newBudget(in)
	x := newExtractor(root, s.paths.dir(d.CacheID), d.budget)
	defer x.close()
	split := s.paths.writeSet(d.CacheID) + "/" + tarSplitName
	_, err = s.pipeline(context.Background(), x, in, split)
	if err == nil {
		err = x.finish(context.Background(), d, split)
	}
	if derr := d.Discard(); derr != nil {
		t.Error(derr)
	}
	return x, err
}

// checkCounts compares the counted work and memory with the size and the tree of the layer.
func checkCounts(t *testing.T, x *extractor) {
	t.Helper()
	if x.budget.work > x.budget.image.floors.work+workPerByte*x.record.total+maxLinks*maxPath*costStep {
		t.Errorf("%d units of work for %d bytes", x.budget.work, x.record.total)
	}
	var held int64
	err := x.tree.each(func(n *node) error {
		held += 120 + int64(len(n.base))
		for name, c := range n.children {
			held += 24 + int64(len(name))
			if c.kind == kindSymlink {
				held += 120 + int64(len(c.target))
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	held += int64(len(x.names.last))*24 + int64(len(x.moved))*32
	if held > x.budget.kept+1024 {
		t.Errorf("%d bytes are in use, %d were counted", held, x.budget.kept)
	}
}

// each calls f for every directory below and including n, parents first.
func (n *node) each(f func(*node) error) error {
	if err := f(n); err != nil {
		return err
	}
	for _, c := range n.children {
		if c.kind == kindDir {
			if err := c.each(f); err != nil {
				return err
			}
		}
	}
	return nil
}
