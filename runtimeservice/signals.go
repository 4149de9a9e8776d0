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

// stopSignal is the name of the signal that asks a container to end: the
// kubelet's choice, else the image's, else SIGTERM.
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
	// Sorted, so that of two names of one number the usual one comes first.
	for _, name := range slices.Sorted(maps.Keys(signal.SignalMap)) {
		if signal.SignalMap[name] == sig && criSignal("SIG"+name) != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			return "SIG" + name
		}
	}
	return defaultStop
}

// kernelName turns SIGNAL_SIGRTMINPLUS3 into SIGRTMIN+3.
func kernelName(sig runtimeapi.Signal) string {
	name := strings.TrimPrefix(sig.String(), criSignalStart)
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
}

// criSignal is the reverse of kernelName; a name that the CRI does not have is
// SIGNAL_RUNTIME_DEFAULT.
func criSignal(name string) runtimeapi.Signal {
	return runtimeapi.Signal(runtimeapi.Signal_value[criSignalStart+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)])
}

// signalNumber is the kernel's number of a name that stopSignal returned.
func signalNumber(name string) syscall.Signal {
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}
