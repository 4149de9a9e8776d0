// Package signals converts the names of stop signals between the CRI, images and the kernel:
// SIGNAL_SIGRTMINPLUS3, SIGRTMIN+3 and its number. Records of containers have the name with the
// kernel's spelling. The package sends no signal.
package signals

import (
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/signal"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	byDefault = "SIGTERM"
	criPrefix = "SIGNAL_"
)

// Stop returns the name of the signal that asks a container to exit: the request's, or else the
// image's, or else SIGTERM.
func Stop(requested runtimeapi.Signal, image string) string {
	if requested != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return kernelName(requested)
	}
	if image == "" {
		return byDefault
	}
	sig, err := signal.ParseSignal(image)
	if err != nil {
		return byDefault // an image can't keep its containers from ending
	}
	// Sorted, so that the usual one of two names with the same number comes first.
	for _, name := range slices.Sorted(maps.Keys(signal.SignalMap)) {
		if signal.SignalMap[name] == sig && CRI("SIG"+name) != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			return "SIG" + name
		}
	}
	return byDefault
}

// kernelName converts SIGNAL_SIGRTMINPLUS3 to SIGRTMIN+3.
func kernelName(sig runtimeapi.Signal) string {
	name := strings.TrimPrefix(sig.String(), criPrefix)
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
}

// CRI is the reverse of kernelName. It returns SIGNAL_RUNTIME_DEFAULT for names that the CRI
// does not have.
func CRI(name string) runtimeapi.Signal {
	return runtimeapi.Signal(runtimeapi.Signal_value[criPrefix+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)])
}

// Number returns the kernel's number of a signal that Stop returned.
func Number(name string) syscall.Signal {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}
