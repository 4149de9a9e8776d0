package stats

import (
	"context"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/overlay"
)

const (
	// rateWindow is the shortest time over which a CPU rate is meaningful.
	rateWindow = time.Second
	// layerAge is how long a measurement of a writable layer is reused. A slow measurement is
	// reused for layerPatience times its own duration.
	layerAge      = 10 * time.Second
	layerPatience = 20
)

// Sampler remembers the last readings of one pod or container. Its zero value is ready. It is safe
// for concurrent use and must not be copied.
type Sampler struct {
	mu        sync.Mutex // guards the rest; not held during a measurement
	cpu       cpuSample
	layer     Layer
	measuring bool // a caller is measuring the layer
}

// cpuSample is a reading of CPU time in nanoseconds, and the rate that it gave, in nanoseconds per
// second.
type cpuSample struct {
	at          time.Time
	total, rate uint64
}

// Layer is one measurement of a writable layer.
type Layer struct {
	at    time.Time
	took  time.Duration
	usage overlay.Usage
}

// Filesystem returns the measurement as CRI message. mountpoint identifies the file system to the
// kubelet.
func (l Layer) Filesystem(mountpoint string) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  l.at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
		UsedBytes:  value(l.usage.Bytes),
		InodesUsed: value(l.usage.Inodes),
	}
}

// Rate records that total nanoseconds of CPU time were used until at, and returns the use in
// nanoseconds per second since the previous reading. The first reading, and one that is lower than
// the previous one, count from start; without a start their rate is 0. A reading less than a second
// after the previous one is dropped and returns the previous rate.
func (s *Sampler) Rate(at time.Time, total uint64, start time.Time) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.cpu
	if last.at.IsZero() || total < last.total {
		last = cpuSample{at: start}
	} else if at.Sub(last.at) < rateWindow {
		return last.rate
	}
	elapsed := at.Sub(last.at)
	if start.IsZero() || elapsed <= 0 {
		return 0
	}
	rate := uint64(float64(total-last.total) / elapsed.Seconds())
	s.cpu = cpuSample{at: at, total: total, rate: rate}
	return rate
}

// Layer returns the size of the writable layer, measured by measure now or some seconds ago.
// While one caller measures again, others get the old measurement. Callers before the first
// measurement all measure. It returns the error of measure; the next call then measures again.
func (s *Sampler) Layer(ctx context.Context, measure func(context.Context) (overlay.Usage, error)) (Layer, error) {
	begin := time.Now()
	layer, claimed := s.claimLayer(begin)
	if !claimed {
		return layer, nil
	}
	size, err := measure(ctx)
	layer = Layer{at: begin, took: time.Since(begin), usage: size}
	s.setLayer(layer, err)
	if err != nil {
		return Layer{}, fmt.Errorf("measure writable layer: %w", err)
	}
	return layer, nil
}

// claimLayer returns the last measurement, or true if the caller has to make a new one and pass it
// to setLayer.
func (s *Sampler) claimLayer(now time.Time) (Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := !s.layer.at.IsZero()
	if known && (s.measuring || now.Sub(s.layer.at) < max(layerAge, layerPatience*s.layer.took)) {
		return s.layer, false
	}
	s.measuring = true
	return Layer{}, true
}

func (s *Sampler) setLayer(layer Layer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measuring = false
	if err == nil {
		s.layer = layer
	}
}
