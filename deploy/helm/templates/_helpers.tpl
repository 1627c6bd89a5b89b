{{- define "relay.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "relay.selector" -}}
app.kubernetes.io/name: git-ssh-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "relay.labels" -}}
{{ include "relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "relay.meta" -}}
name: {{ include "relay.name" .root }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "relay.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* What schemas cannot say: each in one line. */ -}}
{{- define "relay.check" -}}
{{- if not .Values.keys.existingSecret }}
{{- fail "keys.existingSecret is empty, must name the Secret with the relay's private keys (relay init, then kubectl create secret generic)" }}
{{- end }}
{{- if not .Values.config.existingConfigMap }}
{{- if not (contains "[upstreams." .Values.config.toml) }}
{{- fail "config.toml has no [upstreams.NAME], must have at least one git host; or config.existingConfigMap names a configuration of your own" }}
{{- end }}
{{- range $table := list "admin" "log" "limits" "proxy_protocol" "shared" "packs" }}
{{- if regexMatch (printf "(?m)^\\s*\\[\\s*%s\\s*\\]" $table) $.Values.config.toml }}
{{- fail (printf "config.toml has a table [%s], which the chart writes; use the chart's values, or config.existingConfigMap" $table) }}
{{- end }}
{{- end }}
{{- if contains "[keys]" .Values.config.toml }}
{{- if or .Values.people.keys .Values.people.existingConfigMap }}
{{- fail "people is set though config.toml has [keys], must be one of the two" }}
{{- end }}
{{- else if not (or .Values.people.keys .Values.people.existingConfigMap) }}
{{- fail "people.keys is empty, must have a public key for each person; or people.existingConfigMap, or [keys] in config.toml" }}
{{- end }}
{{- end }}
{{- if and .Values.people.keys .Values.people.existingConfigMap }}
{{- fail "people.keys is set beside people.existingConfigMap, must be one of the two" }}
{{- end }}
{{- if and (ne .Values.proxyProtocol.mode "off") (not .Values.proxyProtocol.trusted) }}
{{- fail "proxyProtocol.trusted is empty though proxyProtocol.mode is not off, must name the balancer's networks" }}
{{- end }}
{{- if and .Values.shared.urls (not .Values.shared.existingSecret) }}
{{- fail "shared.existingSecret is empty though shared.urls is set, must name the Secret with redis.password" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled }}
{{- fail "serviceMonitor and podMonitor are both enabled, must be one of the two: else each pod is scraped twice" }}
{{- end }}
{{- end }}

{{- define "relay.chartKeys" -}}
{{- if not (or .Values.config.existingConfigMap (contains "[keys]" .Values.config.toml)) }}true{{ end }}
{{- end }}

{{- define "relay.people" -}}
{{- if .Values.people.existingConfigMap }}{{ .Values.people.existingConfigMap }}
{{- else if .Values.people.keys }}{{ include "relay.name" . }}-people
{{- end }}
{{- end }}

{{- define "relay.toml" -}}
listen = ["0.0.0.0:2222"]
host_keys = [{{ range $i, $name := .Values.keys.hostKeys }}{{ if $i }}, {{ end }}{{ printf "/etc/relay-keys/%s" $name | toJson }}{{ end }}]
workers = {{ .Values.workers | int }}

[admin]
listen = "0.0.0.0:9122"
sessions_socket = "/run/relay/relay.sock"

[log]
format = "json"

[limits]
drain_seconds = {{ .Values.drainSeconds | int }}
{{- with .Values.config.limits }}
{{ trim . }}
{{- end }}
{{- if ne .Values.proxyProtocol.mode "off" }}

[proxy_protocol]
mode = {{ .Values.proxyProtocol.mode | toJson }}
trusted = {{ .Values.proxyProtocol.trusted | toJson }}
{{- end }}
{{- if .Values.shared.urls }}

[shared]
urls = {{ .Values.shared.urls | toJson }}
{{- with .Values.shared.username }}
username = {{ . | toJson }}
{{- end }}
password_file = "/etc/relay-shared/redis.password"
{{- if .Values.shared.secretFile }}
secret_file = "/etc/relay-shared/shared.secret"
{{- end }}
{{- end }}
{{- if .Values.packs.enabled }}

[packs]
folder = "/var/cache/relay/packs"
max_bytes = {{ mul (.Values.packs.sizeGi | int64) 894784853 }}
{{- end }}
{{- if include "relay.chartKeys" . }}

[keys]
source = "file"
path = "/etc/relay-people"
{{- end }}

{{ trim .Values.config.toml }}
{{- end }}
