package overlay

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
)

// BenchmarkApply extracts 4,000 files of 4 KiB and 64 MiB in large files. It uses its own ext4 with
// a journal: without one, mass deletes slow down the next creations.
func BenchmarkApply(b *testing.B) {
	s := loopStore(b, 4<<30, "mkfs.ext4", "-q", "-F")
	var entries []entry
	for i := range 4000 {
		if i%40 == 0 {
			entries = append(entries, dir(fmt.Sprint("d", i/40)))
		}
		entries = append(entries, file(fmt.Sprint("d", i/40, "/f", i), strings.Repeat("content ", 512)))
	}
	for i := range 4 {
		entries = append(entries, file(fmt.Sprint("big", i), strings.Repeat("0123456789abcdef", 1<<20)))
	}
	data := buildTar(b, entries...)
	b.SetBytes(int64(len(data)))
	b.ResetTimer()
	for b.Loop() {
		d, err := s.Apply(context.Background(), bytes.NewReader(data))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := d.Discard(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkOpen opens a store of 1,000 layers.
func BenchmarkOpen(b *testing.B) {
	s := newStore(b)
	var drafts []*Draft
	for i := range 1000 {
		d, err := s.Apply(context.Background(), bytes.NewReader(buildTar(b, file("f", fmt.Sprint(i)))))
		if err != nil {
			b.Fatal(err)
		}
		if drafts = append(drafts, d); len(drafts) == 100 {
			if _, err := s.Commit(context.Background(), "", drafts...); err != nil {
				b.Fatal(err)
			}
			drafts = nil
		}
	}
	root := s.paths.root
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(context.Background(), Options{Root: root})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if got := len(s.Layers()); got != 1000 {
			b.Fatalf("%d layers", got)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
