// Package packaging holds the files that an installation needs beside the
// executables: a configuration in which every key is explained, crictl's pointer to
// the socket, and the systemd units. It has no code; its tests keep these files in
// step with what the executables understand.
package packaging
