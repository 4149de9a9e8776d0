package overlay

import (
	"io"
	"sync"
	"sync/atomic"
)

// Decompressed is implemented by inputs of [Store.Apply] that were decompressed. Its methods must
// be safe for concurrent use.
type Decompressed interface {
	// Received returns how many compressed bytes were transferred for the output read so far.
	Received() int64
	// Repeated returns the blob's size in bytes if another layer of the image has the same blob,
	// otherwise zero. A blob adds to the allowance only once.
	Repeated() int64
	// ByteCost returns the extra processor time of a byte of output compared with gzip, in
	// nanoseconds.
	ByteCost() int64
}

// floors are the minimum allowance of every image: nanoseconds of work and bytes of memory.
type floors struct{ work, kept int64 }

// Allowance is the budget that the layers of one image share: processor time for all layers, and
// memory for those that are not committed yet. It is a minimum plus an amount for each transferred
// byte. It is safe for concurrent use by any number of [Store.ApplyWithin] calls.
type Allowance struct {
	floors floors
	work   atomic.Int64 // of all layers
	kept   atomic.Int64 // of the layers in live
	may    atomic.Int64 // highest work that is known to be allowed; it only grows

	mu   sync.Mutex // guards what follows
	live map[*budget]struct{}
	done transferred // for layers that are no longer in live
}

// transferred is the input of layers: bytes, and bytes times their byteCost.
type transferred struct{ bytes, weighed int64 }

func (t *transferred) add(b *budget) {
	if b.repeated > 0 {
		return
	}
	n := b.received()
	t.bytes += n
	t.weighed += n * b.byteCost
}

// mayWork returns the maximum work for these bytes. Beyond smallImage, bytes of a slow format add
// the cost of decompressing them at slowRatio.
func (t transferred) mayWork() int64 {
	if t.bytes <= smallImage {
		return t.bytes * workPerByte
	}
	slow := float64(t.weighed) * slowRatio * (1 - smallImage/float64(t.bytes))
	return smallImage*workPerByte + (t.bytes-smallImage)*workPerMore + int64(slow)
}

// NewAllowance returns the allowance of an image.
func (s *Store) NewAllowance() *Allowance { return newAllowance(s.floors) }

func newAllowance(f floors) *Allowance {
	a := &Allowance{floors: f, live: map[*budget]struct{}{}}
	a.may.Store(f.work)
	return a
}

// received returns the transferred bytes of all layers, and of those in live.
func (a *Allowance) received() (all, live transferred) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for b := range a.live {
		live.add(b)
	}
	return transferred{a.done.bytes + live.bytes, a.done.weighed + live.weighed}, live
}

// allows reports whether the allowance covers this much work.
func (a *Allowance) allows(work int64) bool {
	if work <= a.may.Load() {
		return true
	}
	all, _ := a.received()
	may := a.floors.work + all.mayWork()
	a.may.Store(max(may, a.may.Load())) // a race may store a smaller value, which only costs another calculation
	return work <= may
}

// holds reports whether the allowance covers this much memory.
func (a *Allowance) holds(kept int64) bool {
	if kept <= a.floors.kept {
		return true
	}
	_, live := a.received()
	return kept <= a.floors.kept+live.bytes*keptPerByte
}

// budget adds up what one layer takes of its image's allowance. Its methods are for one goroutine.
type budget struct {
	image    *Allowance
	received func() int64 // for any goroutine; image.mu guards the field
	byteCost int64        // of decompression, beyond what costContent has of it
	repeated int64        // size of a blob that another layer of the image has as well; constant

	work, kept                       int64
	counted                          int64 // transferred bytes that are part of work
	entries, steps, headers, content int64
}

// newBudget adds a layer to the image. The caller ends it with leave.
func (a *Allowance) newBudget(in Decompressed) *budget {
	b := &budget{image: a, received: in.Received, byteCost: in.ByteCost(), repeated: in.Repeated()}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live[b] = struct{}{}
	return b
}

// leave releases the memory of a committed or discarded layer. More calls do nothing.
func (b *budget) leave() {
	a := b.image
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.live[b]; !ok {
		return
	}
	delete(a.live, b)
	a.done.add(b)
	a.kept.Add(-b.kept)
}

// complete reduces the memory of a complete layer to kept bytes. It copies the count of received
// bytes, so that the input's decompressor and buffers can be freed before the layer is committed.
func (b *budget) complete(kept int64) {
	a := b.image
	a.mu.Lock()
	defer a.mu.Unlock()
	n := b.received()
	b.received = func() int64 { return n }
	a.kept.Add(kept - b.kept)
	b.kept = kept
}

// spend adds processor time.
func (b *budget) spend(cost int64) error {
	b.work += cost
	if work := b.image.work.Add(cost); b.image.allows(work) {
		return nil
	}
	all, _ := b.image.received()
	return invalid("the layers of the image take more work than %d ms, the limit for %d transferred bytes; this layer takes %d ms: "+
		"%d entries, %d path components, %d bytes of headers, %d bytes in all",
		(b.image.floors.work+all.mayWork())/1e6, all.bytes, b.work/1e6, b.entries, b.steps, b.headers, b.content)
}

func (b *budget) step(n int) error {
	b.steps += int64(n)
	return b.spend(int64(n) * costStep)
}

// begin adds the fixed cost of a layer. It includes the whole transfer of a repeated blob, because
// the rest of the blob is read even if the layer ends early.
func (b *budget) begin() error { return b.spend(costLayer + b.repeated*costTransfer) }

// read adds content that was read, and its transferred bytes.
func (b *budget) read(n int64) error {
	b.content += n
	cost := n * (costContent + b.byteCost)
	if b.repeated == 0 {
		received := b.received()
		cost += (received - b.counted) * costTransfer
		b.counted = received
	}
	return b.spend(cost)
}

// keep adds memory that stays in use until the layer is complete.
func (b *budget) keep(size int) error {
	b.kept += int64(size)
	if kept := b.image.kept.Add(int64(size)); b.kept <= maxKept && b.image.holds(kept) {
		return nil
	}
	_, live := b.image.received()
	return invalid("the names and link targets of the image's layers need more memory than %d MiB and %d bytes for each of their %d bytes, "+
		"or those of one layer more than %d MiB; this layer needs %d bytes for %d entries",
		b.image.floors.kept>>20, keptPerByte, live.bytes, maxKept>>20, b.kept, b.entries)
}

// lookups counts the lookups of a Commit in the layers below against the allowance of the committed
// layers. One goroutine may use it at a time.
type lookups struct{ work, may, count int64 }

// newLookups begins with the work of extracting the drafts. Copied layers have no part in it.
func (s *Store) newLookups(drafts []*Draft) *lookups {
	var l lookups
	var all transferred
	for _, d := range drafts {
		if d.Copied {
			continue
		}
		l.work += d.budget.work
		all.add(d.budget)
	}
	l.may = s.floors.work + all.mayWork()
	return &l
}

// take counts one lookup of a path with depth components.
func (l *lookups) take(depth int) error {
	if l == nil {
		return nil
	}
	l.count++
	if l.work += costLookup + int64(depth)*costStep; l.work <= l.may {
		return nil
	}
	return invalid("the layers take more work than their limit of %d ms, with %d lookups in the layers below for directories that the tars imply",
		l.may/1e6, l.count)
}

// countedInput counts the bytes read from an input that was not decompressed.
type countedInput struct {
	io.Reader
	count atomic.Int64
}

// Read implements io.Reader.
func (c *countedInput) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.count.Add(int64(n))
	return n, err
}

// Received implements [Decompressed].
func (c *countedInput) Received() int64 { return c.count.Load() }

// Repeated implements [Decompressed].
func (c *countedInput) Repeated() int64 { return 0 }

// ByteCost implements [Decompressed].
func (c *countedInput) ByteCost() int64 { return 0 }
