package lookup

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// maxKernelConfig bounds a kernel's configuration, in bytes.
const maxKernelConfig = 4 << 20

// lacksX32 reports whether the kernel's configuration says that there are no x32 system calls.
// Without a published configuration it returns false. It does not try such a call, since a seccomp
// filter on this process could kill it.
func lacksX32() bool {
	return configLacksX32(kernelConfig())
}

func configLacksX32(config []byte) bool {
	// The option is X86_X32_ABI since Linux 5.18, X86_X32 before.
	return regexp.MustCompile(`(?m)^# CONFIG_X86_X32(_ABI)? is not set$`).Match(config)
}

// kernelConfig returns the running kernel's configuration, or nil if it is not published.
func kernelConfig() []byte {
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		config, err := os.ReadFile("/boot/config-" + unix.ByteSliceToString(name.Release[:]))
		if err == nil {
			return config
		}
	}
	packed, err := os.ReadFile("/proc/config.gz")
	if err != nil {
		return nil
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil
	}
	config, err := io.ReadAll(io.LimitReader(r, maxKernelConfig))
	if err != nil {
		return nil
	}
	return config
}
