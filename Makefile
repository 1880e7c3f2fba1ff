# make help lists what there is to do. Everything needs Go. What else is needed is taken
# from Debian's packages, some of it only by root, or named when it is missing.

SHELL       := /bin/bash
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PKG         ?= work
RUN         ?= .
# The race detector needs a C compiler.
RACE        := $(shell command -v $$(go env CC) >/dev/null && echo -race)
MODULES      = $(shell go list -m -f '{{.Dir}}')
# What only some targets test has a build tag.
TAGS        := e2e,compose,page,observability,proxy
# tool runs one of the programs whose versions are in tools/go.mod.
tool         = "$$(cd $(CURDIR)/tools && GOWORK=off go tool -n $(1))"
SCRIPTS     := build-images.sh deploy/tls/certificates.sh .ci/run .ci/release test/kind.sh services/complex-app/page/chart/licences

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  %-20s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Try it

.PHONY: demo
demo: build ## the tutorial's five events on this machine, without a cluster
	@bin/sandbox demo

.PHONY: up
up: build ## the same system until Ctrl-C; prints the address of its page
	@bin/sandbox up

##@ Build and test

.PHONY: build
build: ## build the programs into bin/
	@echo "building into bin/ (the first time takes some minutes: SQLite is compiled too)"
	@CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/ \
		./services/complex-app ./services/processor-job ./services/sandbox/cmd/sandbox

.PHONY: test
test: build ## unit and integration tests on a real RabbitMQ and database: PKG=./services/… RUN=TestName pick some, COUNT=20 repeats them
	@[ -n "$(RACE)" ] || echo "no C compiler: testing without the race detector"
	@bin/sandbox exec -- go test -count=$(or $(COUNT),1) $(RACE) -run '$(RUN)' $(PKG)

.PHONY: cover
cover: build ## the tests' coverage, as coverage.html
	@bin/sandbox exec -- go test -coverpkg=work -coverprofile=coverage.out work
	@go tool cover -html=coverage.out -o coverage.html
	@go tool cover -func=coverage.out | tail -1

.PHONY: lint
lint: ## formatting, go vet, staticcheck, shellcheck, actionlint, documents
	@unformatted=$$(gofmt -l services test); [ -z "$$unformatted" ] || { echo "run gofmt on: $$unformatted"; exit 1; }
	@go vet -tags $(TAGS) work
	@for module in $(MODULES); do (cd $$module && $(call tool,staticcheck) -tags $(TAGS) ./...) || exit 1; done
	@command -v shellcheck >/dev/null || { echo "install shellcheck (Debian: apt-get install shellcheck)"; exit 1; }
	@shellcheck $(SCRIPTS)
	@$(call tool,actionlint)
	@cd test && go test -count=1 ./documents # its files are outside of the module, so Go would not see a change

.PHONY: vuln
vuln: ## known vulnerabilities in what the programs and tests call (asks Go's vulnerability database)
	@for module in $(MODULES); do echo "$${module##*/}:" && (cd $$module && $(call tool,govulncheck) -test ./...) || exit 1; done

.PHONY: chart
chart: ## build the page's chart library again, with Node.js; its result is checked in
	@command -v npm >/dev/null || { echo "install Node.js with npm (Debian: apt-get install npm)"; exit 1; }
	@cd services/complex-app/page/chart && npm ci --ignore-scripts --no-audit --no-fund && npm run build

.PHONY: chart-check
chart-check: chart ## fails unless make chart gives what is checked in
	@git diff --stat --exit-code -- services/complex-app/page/assets || \
		{ echo "make chart gives other files than those that are checked in: commit them"; exit 1; }

##@ Operate

.PHONY: redrive
redrive: ## send dead letters back: URL=http://localhost:8080, ID=… for one of them
	@curl -sS --fail-with-body -X POST --get $(if $(ID),--data-urlencode 'id=$(ID)') $(or $(URL),http://localhost:8080)/dead-letters/redrive

.PHONY: discard
discard: ## discard dead letters for good: URL=http://localhost:8080, ID=… for one of them
	@curl -sS --fail-with-body -X DELETE --get $(if $(ID),--data-urlencode 'id=$(ID)') $(or $(URL),http://localhost:8080)/dead-letters

##@ More tests

.PHONY: test-page
test-page: build ## the page in a headless Chromium; PICTURES=folder keeps what it sees
	@command -v chromium chromium-browser google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "installing Debian's package chromium, once" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
		{ echo "install Chromium (Debian: apt-get install chromium)"; exit 1; }
	@cd test && PICTURES=$(if $(PICTURES),$(abspath $(PICTURES))) go test -tags page -run '$(RUN)' -count=1 -timeout 30m ./page

.PHONY: e2e
e2e: ## the tutorial and more on the cluster of KUBECONFIG, with the registry REPO, LOGIN, PASSWORD: RUN=TestName SKIP=TestName
	@cd test && go test -tags e2e -count=1 -timeout 90m -parallel 3 -v -run '$(RUN)' $(if $(SKIP),-skip '$(SKIP)') ./e2e

.PHONY: e2e-compose
e2e-compose: ## the tutorial's five events with Docker Compose
	@cd test && go test -tags compose -count=1 -timeout 30m -v ./compose

.PHONY: test-observability
test-observability: build ## alerts, dashboard and traces of the sandbox, in a real Prometheus and an OTLP receiver
	@# taken out of Debian's package and not installed: no service starts, and no root is needed
	@command -v promtool >/dev/null || [ -x bin/prometheus/promtool ] || { set -e; \
		echo "taking prometheus and promtool out of Debian's package, into bin/prometheus/"; \
		rm -rf bin/prometheus && mkdir -p bin/prometheus && cd bin/prometheus; \
		apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; \
		dpkg -x prometheus_*.deb . && mv usr/bin/prom* . && rm -r prometheus_*.deb etc lib usr var; }
	@cd test && PATH="$$PATH:$(CURDIR)/bin/prometheus" go test -tags observability -count=1 -timeout 10m ./observability

.PHONY: test-proxy
test-proxy: build ## complex-app behind nginx, as deploy/proxy/nginx.conf sets it up
	@# taken out of Debian's package and not installed: no service starts, and no root is needed
	@command -v nginx >/dev/null || [ -x bin/nginx/usr/sbin/nginx ] || { set -e; \
		echo "taking nginx out of Debian's package, into bin/nginx/"; \
		rm -rf bin/nginx && mkdir -p bin/nginx && cd bin/nginx; \
		apt-get -qq download nginx || { apt-get -qq update && apt-get -qq download nginx; }; \
		dpkg -x nginx_*.deb .; }
	@cd test && PATH="$$PATH:/usr/sbin:$(CURDIR)/bin/nginx/usr/sbin" go test -tags proxy -count=1 -timeout 5m ./proxy

.PHONY: conformance
conformance: ## does the sandbox decide as KEDA's own code does? (compiles KEDA: minutes) KEDA=v2.19.0 SEED=1 STATES=4000
	@# Another version of KEDA is built with its own go.mod, which pins what it was released
	@# with. vet looks at all that is imported, 1,500 packages: once is enough.
	@set -e; export GOWORK=off; cd test/conformance; if [ -n "$(KEDA)" ]; then \
		keda=$$(go mod download -json github.com/kedacore/keda/v2@$(KEDA) | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p'); \
		mkdir -p ../../bin && copy=$$(mktemp -d ../../bin/conformance.XXXXXX) && trap "rm -rf '$$PWD/$$copy'" EXIT; \
		cp ./*.go "$$keda/go.mod" "$$keda/go.sum" $$copy && cd $$copy && chmod u+w ./*; \
		go mod edit -module keda-p2/test/conformance -require github.com/kedacore/keda/v2@$(KEDA) \
			-require keda-p2/services/sandbox@v0.0.0 -replace keda-p2/services/sandbox=../../services/sandbox -replace keda-p2/services/contract=../../services/contract; \
		go mod tidy; \
	fi; \
	$(if $(KEDA),,go vet . &&) go test -vet=off -count=1 -timeout 30m . $(if $(SEED),-seed $(SEED)) $(if $(STATES),-states $(STATES)) $(if $(STATE),-state $(STATE))

.PHONY: chaos
chaos: build ## events while everything is killed, restarted and cut: SEED=1 EVENTS=2000 CLIENTS=16
	@cd test && go run ./chaos -bin ../bin -deploy ../deploy $(if $(SEED),-seed $(SEED)) $(if $(EVENTS),-events $(EVENTS)) $(if $(CLIENTS),-clients $(CLIENTS))

##@ Measure and plan

.PHONY: bench
bench: build ## ratios to the raw clients: BENCH=send,data ROUNDS=5 OLD=folder of older programs JSON=file
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "installing Debian's package wrk, once" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends wrk >/dev/null; } || \
		{ echo "install wrk (Debian: apt-get install wrk)"; exit 1; }
	@CGO_ENABLED=0 go build -trimpath -o bin/ ./test/measure/bench ./test/measure/bench/raw
	@bin/sandbox exec -- bin/bench -only '$(BENCH)' -rounds $(or $(ROUNDS),5) -old '$(OLD)' -json '$(JSON)'

.PHONY: scaling
scaling: ## measure the scaling on the cluster of KUBECONFIG: LOADS=five,bursts VARIANTS=all REPEAT=3 PICTURES=folder JSON=file COMPARE=file BUDGET=1
	@cd test && go run ./measure/scaling $(if $(LOADS),-loads $(LOADS)) $(if $(VARIANTS),-variants $(VARIANTS)) $(if $(REPEAT),-repeat $(REPEAT)) \
		$(if $(PICTURES),-pictures $(abspath $(PICTURES))) $(if $(JSON),-json $(abspath $(JSON))) $(if $(BUDGET),-budget) $(if $(COMPARE),-compare $(abspath $(COMPARE)))

.PHONY: plan
plan: ## predict waits, Jobs and cost: RATE=0.2 or BURSTS=5@0s,5@8s WORK=20s MAX=10 POLL=2 (docs/planning.md)
	@cd test && go run ./measure/plan $(foreach v,RATE FOR BURSTS WORK MAX POLL SEED START STARTS LAG END,$(if $($v),-$(shell echo $v | tr A-Z a-z) '$($v)')) $(if $(CHECK),-check $(abspath $(CHECK)))

.PHONY: picture
picture: ## draw the README's animated picture again, from what make scaling has recorded
	@cd test && go run ./measure/scaling -animate ../docs/measured/bursts.json -pictures ../docs

##@ Clusters and releases

.PHONY: kind
kind: ## Kubernetes in Docker with KEDA, a registry, both servers and this application
	@test/kind.sh up

.PHONY: kind-down
kind-down: ## remove what make kind has made
	@test/kind.sh down

.PHONY: release-check
release-check: ## can this commit be released? VERSION=v1.2.3
	@.ci/release check '$(VERSION)'

.PHONY: release-manifest
release-manifest: ## bin/keda-p2.yaml, all that is applied: VERSION=v1.2.3 REPO=registry IMAGES=file of what .ci/release images printed
	@mkdir -p bin && .ci/release manifest '$(VERSION)' '$(REPO)' '$(IMAGES)' >bin/keda-p2.yaml.new && mv bin/keda-p2.yaml.new bin/keda-p2.yaml
	@echo bin/keda-p2.yaml

##@ Tidy up

.PHONY: clean
clean: ## delete what the other targets made
	rm -rf bin coverage.out coverage.html
