package overlay

import (
	"bytes"
	"runtime"
	"testing"
	"weak"
)

// decompressor is an input that holds a buffer.
type decompressor struct {
	bytes.Reader
	_ [1 << 20]byte // its buffer
}

// Received implements [Decompressed].
func (d *decompressor) Received() int64 { return d.Size() - int64(d.Len()) }

// Repeated implements [Decompressed].
func (d *decompressor) Repeated() int64 { return 0 }

// ByteCost implements [Decompressed].
func (d *decompressor) ByteCost() int64 { return 0 }

// TestDraftsDoNotKeepTheirInputs: layers that wait for their commit keep no decompressors and
// buffers in memory. An image has up to 500 layers, and all wait for the last one.
func TestDraftsDoNotKeepTheirInputs(t *testing.T) {
	s := newStore(t)
	in := &decompressor{}
	in.Reset(buildTar(t, file("f", "content")))
	kept := weak.Make(in)
	d, err := s.Apply(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	size := in.Size()
	in = nil
	runtime.GC()
	if kept.Value() != nil {
		t.Error("the draft keeps its input")
	}
	if all, live := d.budget.image.received(); all.bytes != size || live.bytes != size {
		t.Errorf("received are %d bytes, %d for live layers, want %d", all.bytes, live.bytes, size)
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
	if all, live := d.budget.image.received(); all.bytes != size || live.bytes != 0 {
		t.Errorf("after the discard %d bytes, %d for live layers", all.bytes, live.bytes)
	}
}
