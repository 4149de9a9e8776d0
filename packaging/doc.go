// Package packaging holds what an installation needs beside the executables: a
// configuration in which every key is explained, samples for crictl and kubeadm, the
// systemd units, manual pages, completions of the shells, and the Debian package
// that `make deb` builds. It has no code; its tests keep these files in step with
// what the executables understand, and install the package.
package packaging
