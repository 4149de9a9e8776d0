package runtimeservice

import (
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/signal"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/imageservice"
)

const (
	sigKill        = syscall.SIGKILL
	defaultStop    = "SIGTERM"
	criSignalStart = "SIGNAL_"
)

// stopSignal returns the name of the signal that asks a container to exit: the request's, or else
// the image's, or else SIGTERM.
func stopSignal(cfg *runtimeapi.ContainerConfig, img imageservice.Detailed) string {
	if sig := cfg.GetStopSignal(); sig != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return kernelName(sig)
	}
	if img.Config.Config.StopSignal == "" {
		return defaultStop
	}
	sig, err := signal.ParseSignal(img.Config.Config.StopSignal)
	if err != nil {
		return defaultStop // an image can't keep its containers from ending
	}
	// Sorted, so that the usual one of two names with the same number comes first.
	for _, name := range slices.Sorted(maps.Keys(signal.SignalMap)) {
		if signal.SignalMap[name] == sig && criSignal("SIG"+name) != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			return "SIG" + name
		}
	}
	return defaultStop
}

// kernelName converts SIGNAL_SIGRTMINPLUS3 to SIGRTMIN+3.
func kernelName(sig runtimeapi.Signal) string {
	name := strings.TrimPrefix(sig.String(), criSignalStart)
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
}

// criSignal is the reverse of kernelName. It returns SIGNAL_RUNTIME_DEFAULT for names that the CRI
// does not have.
func criSignal(name string) runtimeapi.Signal {
	return runtimeapi.Signal(runtimeapi.Signal_value[criSignalStart+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)])
}

// signalNumber returns the kernel's number of a signal that stopSignal returned.
func signalNumber(name string) syscall.Signal {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}
