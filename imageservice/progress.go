package imageservice

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// LayerState is a stage in the life of a layer of a pull.
type LayerState int32

// The states of a layer, in order.
const (
	LayerWaiting  LayerState = iota // for a free slot
	LayerFetching                   // downloaded, decompressed and extracted in one pass
	LayerFetched                    // on disk, waiting for the others to become visible with them
	LayerComplete                   // part of the store
	LayerExists                     // was part of the store before the pull
)

// LayerProgress is how far a layer of a pull has come.
type LayerProgress struct {
	Index  int           // position in the image, base is 0
	Digest digest.Digest // of the blob
	State  LayerState
	Done   int64 // bytes of the blob read
	Total  int64 // bytes of the blob
}

// PullProgress is how far a pull has come.
type PullProgress struct {
	Ref     string // full reference
	Started time.Time
	Layers  []LayerProgress // base to top; empty until the manifest is known
}

// Pulls returns the pulls that are running.
func (s *Service) Pulls() []PullProgress {
	infos := s.pulls.infos()
	list := make([]PullProgress, 0, len(infos))
	for _, p := range infos {
		list = append(list, PullProgress{Ref: p.ref, Started: p.started, Layers: p.snapshot()})
	}
	return list
}

// Fetched returns how many bytes of layers registries have sent since Open.
func (s *Service) Fetched() int64 { return s.fetched.Load() }

// layerProgress is the live form of LayerProgress; pulls that share a layer share it.
type layerProgress struct {
	registry string // that the layer is fetched from; "" for one that is not fetched
	state    atomic.Int32
	done     atomic.Int64
}

// pullProgress is the live form of PullProgress.
type pullProgress struct {
	ref     string
	started time.Time

	mu     sync.Mutex // guards the slice and its elements' fields
	layers []pulledLayer
}

type pulledLayer struct {
	digest digest.Digest
	total  int64
	live   *layerProgress
}

func (p *pullProgress) start(layers []pulledLayer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers = layers
}

// share makes layer i show the progress of another pull's fetch.
func (p *pullProgress) share(i int, live *layerProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers[i].live = live
}

func (p *pullProgress) set(i int, state LayerState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers[i].live.state.Store(int32(state))
}

func (p *pullProgress) snapshot() []LayerProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]LayerProgress, 0, len(p.layers))
	for i, l := range p.layers {
		list = append(list, LayerProgress{
			Index: i, Digest: l.digest, Total: l.total,
			State: LayerState(l.live.state.Load()), Done: l.live.done.Load(),
		})
	}
	return list
}

// String tells how far the pull has come, for people; "" before its layers are known.
func (p *pullProgress) String() string {
	var there, fetching int
	var done, total int64
	list := p.snapshot()
	for _, l := range list {
		switch l.State {
		case LayerExists, LayerComplete, LayerFetched:
			there++
		case LayerFetching:
			fetching++
		}
		if l.State != LayerExists {
			done, total = done+l.Done, total+l.Total
		}
	}
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d layers, %.1f of %.1f MB, %d in transfer", there, len(list), float64(done)/1e6, float64(total)/1e6, fetching)
}

// report calls f for each layer that differs from what was reported last, and returns what is reported now.
func (p *pullProgress) report(last []LayerProgress, f func(LayerProgress)) []LayerProgress {
	now := p.snapshot()
	for i, l := range now {
		if i >= len(last) || last[i] != l {
			f(l)
		}
	}
	return now
}
