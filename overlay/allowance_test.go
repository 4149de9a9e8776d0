package overlay

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// transfer counts an image whose layers are compressed by some ratio and hold files of 10 KB. Each
// megabyte is counted as it arrives. It returns the work when the image has size bytes or is refused.
func transfer(a *Allowance, size, ratio, byteCost int64) (work int64, err error) {
	const piece, layer = 1_000_000, 25_000_000
	for done := int64(0); done < size && err == nil; {
		var received int64
		b := a.newBudget(func() int64 { return received }, byteCost)
		for received < layer && done < size && err == nil {
			received, done = received+piece, done+piece
			err = b.read(piece * ratio)
			for i := int64(0); i < piece*ratio/10_000 && err == nil; i++ {
				err = b.spend(costEntry + plainHeaders*costHeader)
			}
		}
		b.leave()
	}
	return a.work.Load(), err
}

// TestAllowanceOfSlowFormats: an image of 10 MB takes ten seconds at most whatever its format, and one of
// any size passes when its layers shrink to a twentieth.
func TestAllowanceOfSlowFormats(t *testing.T) {
	const slow = 30
	limits := floors{work: workFloor, kept: keptFloor}
	for _, size := range []int64{1_000_000, 10_000_000, 11_000_000, 30_000_000, 100_000_000, 2_000_000_000} {
		for _, byteCost := range []int64{0, slow} {
			if _, err := transfer(newAllowance(limits), size, slowRatio, byteCost); err != nil {
				t.Errorf("image of %d bytes, cost %d: %v", size, byteCost, err)
			}
		}
	}
	for _, ratio := range []int64{45, 1_000, 100_000} {
		work, err := transfer(newAllowance(limits), smallImage, ratio, slow)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("ratio %d: %v", ratio, err)
		}
		if one := 1_000_000 * ratio * (costContent + slow); work > 10_000_000_000+one {
			t.Errorf("ratio %d: %d ms of work", ratio, work/1e6)
		}
	}
}

// TestAllowanceIsShared: the floors count once for all layers of an image, and memory only for those that
// are not committed or discarded.
func TestAllowanceIsShared(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		floors floors
		fill   func(w tarWriter)
	}{
		"more work": {floors{work: workFloor / 100, kept: keptFloor}, func(w tarWriter) {
			linkChain(w)
			for i := range 5 {
				w.put(file(fmt.Sprintf("l%d/f%d", 38+i%2, i), ""))
			}
		}},
		"more memory": {floors{work: workFloor, kept: keptFloor / 5}, func(w tarWriter) {
			for i := range 20 {
				w.put(file(strings.Repeat(fmt.Sprintf("%d/", i), 600)+"f", ""))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			blob := compressLayer(t, c.fill)
			s := memoryStore(t)
			s.floors = c.floors
			image := s.NewAllowance()
			var drafts []*Draft
			var err error
			for i := 0; err == nil && i < 100; i++ {
				var d *Draft
				if d, err = s.ApplyWithin(ctx, image, newReceived(t, blob)); err == nil {
					drafts = append(drafts, d)
				}
			}
			if len(drafts) == 0 || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
				t.Errorf("after %d layers: %v", len(drafts), err)
			}
			d, err := s.ApplyWithin(ctx, s.NewAllowance(), newReceived(t, blob))
			if err != nil {
				t.Errorf("another image: %v", err)
			} else {
				drafts = append(drafts, d)
			}
			for _, d := range drafts {
				if err := d.Discard(); err != nil {
					t.Error(err)
				}
			}
			if kept := image.kept.Load(); kept != 0 || len(image.live) != 0 {
				t.Errorf("%d bytes of %d layers are still counted", kept, len(image.live))
			}
			noDrafts(t, s)
		})
	}
}

// TestCommittedLayersNeedNoMemory: a layer counts for memory until it is committed.
func TestCommittedLayersNeedNoMemory(t *testing.T) {
	ctx := context.Background()
	s := memoryStore(t)
	image := s.NewAllowance()
	d, err := s.ApplyWithin(ctx, image, bytes.NewReader(buildTar(t, file("usr/bin/f", "x"))))
	if err != nil {
		t.Fatal(err)
	}
	if kept := image.kept.Load(); kept <= 0 || kept > 2*keptImplied+100 {
		t.Errorf("a draft with two implied directories counts for %d bytes", kept)
	}
	if _, err := s.Commit(ctx, "", d); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
	if kept := image.kept.Load(); kept != 0 {
		t.Errorf("a committed layer counts for %d bytes", kept)
	}
}
