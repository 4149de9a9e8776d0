package imageservice

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// LayerState is the state of a layer of a pull.
type LayerState int32

// States of a layer, in order.
const (
	LayerWaiting  LayerState = iota // for a free slot
	LayerFetching                   // being downloaded, decompressed and extracted
	LayerFetched                    // on disk; waits for the other layers to be committed with it
	LayerComplete                   // part of the store
	LayerExists                     // was part of the store before the pull
)

// LayerProgress is the progress of a layer of a pull.
type LayerProgress struct {
	Index  int           // position in the image, base is 0
	Digest digest.Digest // of the blob
	State  LayerState
	Done   int64 // bytes received of the blob
	Total  int64 // bytes of the blob
}

// Fetched returns the number of bytes of layers that registries have sent since Open.
func (s *Service) Fetched() int64 { return s.fetched.Load() }

// layerProgress is the current LayerProgress. Pulls that share a layer share it.
type layerProgress struct {
	registry string // from which the layer is fetched; "" if it is not fetched
	state    atomic.Int32
	done     atomic.Int64
}

// pullProgress is the progress of a pull.
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

// share makes layer i show the progress of a fetch.
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

// String describes the progress for people. It returns "" before the layers are known.
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
		case LayerWaiting:
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

// report calls f for each layer that differs from the last report, and returns the new report.
func (p *pullProgress) report(last []LayerProgress, f func(LayerProgress)) []LayerProgress {
	now := p.snapshot()
	for i, l := range now {
		if i >= len(last) || last[i] != l {
			f(l)
		}
	}
	return now
}
