package server

import (
	"io"
	"io/fs"
	"net/http"
	"strconv"

	"torpor/guest/internal/files"
)

func (s *Server) putFile(w http.ResponseWriter, r *http.Request) error {
	root, path, err := s.place(r)
	if err != nil {
		return err
	}
	defer root.Close()
	mode := uint64(0o644)
	if text := r.URL.Query().Get("mode"); text != "" {
		if mode, err = strconv.ParseUint(text, 8, 16); err != nil || mode > 0o777 {
			return refuse(http.StatusBadRequest, "write %s: mode=%q is no file mode", path, text)
		}
	}
	size, err := root.Write(path, fs.FileMode(mode), http.MaxBytesReader(w, r.Body, maxFile))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]int64{"size": size})
}

func (s *Server) getFile(w http.ResponseWriter, r *http.Request) error {
	root, path, err := s.place(r)
	if err != nil {
		return err
	}
	defer root.Close()
	file, found, err := root.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if size := found.Size(); size > 0 { // files of /proc and /sys say 0 and have content
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		io.CopyN(w, file, size) // cut short, the host sees it by the length
		return nil
	}
	io.Copy(w, file)
	return nil
}

// putArchive unpacks a tar archive; its body is as long as it is.
func (s *Server) putArchive(w http.ResponseWriter, r *http.Request) error {
	root, path, err := s.place(r)
	if err != nil {
		return err
	}
	defer root.Close()
	counted, err := root.Unpack(path, r.URL.Query().Get("base"), r.Body)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, counted)
}

func (s *Server) getArchive(w http.ResponseWriter, r *http.Request) error {
	root, path, err := s.place(r)
	if err != nil {
		return err
	}
	defer root.Close()
	pack, err := root.OpenPack(path)
	if err != nil {
		return err
	}
	defer pack.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	if err := pack.Write(w); err != nil {
		panic(http.ErrAbortHandler) // the host sees that the answer has no end
	}
	return nil
}

// place finds the root and the path that a request about a file means.
func (s *Server) place(r *http.Request) (*files.Root, string, error) {
	query := r.URL.Query()
	path := query.Get("path")
	if path == "" {
		return nil, "", refuse(http.StatusBadRequest, "find file: no path")
	}
	switch in := query.Get("in"); in {
	case "guest", "":
		root, err := files.OpenRoot("/")
		return root, path, err
	case "application":
		root, err := s.Application.Root()
		return root, path, err
	default:
		return nil, "", refuse(http.StatusBadRequest, "find file: in=%q is no place", in)
	}
}
