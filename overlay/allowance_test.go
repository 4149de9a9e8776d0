package overlay

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// transfer counts an image with files of 10 KB in layers of one compression ratio. It counts each
// megabyte when it arrives. It returns the work when size bytes have arrived or the image is
// refused.
func transfer(a *Allowance, size, ratio, byteCost int64) (work int64, err error) {
	const piece, layer = 1_000_000, 25_000_000
	for done := int64(0); done < size && err == nil; {
		in := &slowInput{byteCost: byteCost}
		b := a.newBudget(in)
		for in.received < layer && done < size && err == nil {
			in.received, done = in.received+piece, done+piece
			err = b.read(piece * ratio)
			for i := int64(0); i < piece*ratio/10_000 && err == nil; i++ {
				err = b.spend(costEntry + plainHeaders*costHeader)
			}
		}
		b.leave()
	}
	return a.work.Load(), err
}

// slowInput is an input with a number of transferred bytes and a format's cost.
type slowInput struct{ received, byteCost int64 }

func (i *slowInput) Received() int64 { return i.received }
func (i *slowInput) Repeated() int64 { return 0 }
func (i *slowInput) ByteCost() int64 { return i.byteCost }

// TestAllowanceOfSlowFormats: an image of 10 MB takes at most six seconds in any format. An image
// of any size passes if its layers are compressed to a twentieth, or to a twelfth in a slow format.
func TestAllowanceOfSlowFormats(t *testing.T) {
	const slow = 30
	limits := floors{work: workFloor, kept: keptFloor}
	for _, size := range []int64{1_000_000, 10_000_000, 11_000_000, 30_000_000, 100_000_000, 2_000_000_000} {
		for _, byteCost := range []int64{0, slow} {
			ratio := int64(slowRatio)
			if byteCost > 0 {
				ratio = 12
			}
			if _, err := transfer(newAllowance(limits), size, ratio, byteCost); err != nil {
				t.Errorf("image of %d bytes, cost %d: %v", size, byteCost, err)
			}
		}
	}
	for _, ratio := range []int64{45, 1_000, 100_000} {
		work, err := transfer(newAllowance(limits), smallImage, ratio, slow)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("ratio %d: %v", ratio, err)
		}
		if one := 1_000_000 * ratio * (costContent + slow); work > 6_000_000_000+one {
			t.Errorf("ratio %d: %d ms of work", ratio, work/1e6)
		}
	}
}

// TestAllowanceOfRealImages: real images take a small part of their allowance.
func TestAllowanceOfRealImages(t *testing.T) {
	for name, c := range map[string]struct {
		entries, directories, content, transferred, layers int64
		part                                               int64 // maximum part, in percent
	}{
		"Alpine":                         {550, 90, 8e6, 3_600_000, 1, 5},
		"Debian, minimal":                {6_500, 900, 80e6, 30_000_000, 1, 10},
		"Debian with a compiler":         {60_000, 7_000, 1_300e6, 450_000_000, 8, 5},
		"the sources of a kernel":        {85_000, 5_500, 1_400e6, 240_000_000, 1, 10},
		"500,000 files of JavaScript":    {500_000, 60_000, 2_500e6, 500_000_000, 5, 15},
		"500,000 tiny files":             {500_000, 60_000, 250e6, 150_000_000, 1, 50},
		"a small image of tiny files":    {20_000, 3_000, 30e6, 8_000_000, 1, 50},
		"120 layers of a few files each": {120 * 10, 120 * 4, 120e6, 40_000_000, 120, 5},
		"a model of 20 GB":               {30, 5, 20_000e6, 18_000_000_000, 3, 5},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAllowance(floors{work: workFloor, kept: keptFloor})
			received := transferred{bytes: c.transferred}
			work := c.layers*costLayer + c.entries*(costEntry+2*tarBlock*costHeader) + c.directories*costDir + c.content*costContent + c.transferred*costTransfer
			if part := work * 100 / (a.floors.work + received.mayWork()); part > c.part {
				t.Errorf("%d%% of the allowance, more than %d%%: %d ms", part, c.part, work/1e6)
			}
		})
	}
}

// TestAllowanceIsShared: the floors count once for all layers of an image. Only layers that are not
// committed or discarded count for memory.
func TestAllowanceIsShared(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		floors floors
		fill   func(w tarWriter)
	}{
		"more work": {floors{work: workFloor / 20, kept: keptFloor}, func(w tarWriter) {
			linkChain(w)
			for i := range 5 {
				w.put(file(fmt.Sprintf("l%d/f%d", 38+i%2, i), ""))
			}
		}},
		"more memory": {floors{work: 10 * workFloor, kept: keptFloor / 5}, func(w tarWriter) {
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
