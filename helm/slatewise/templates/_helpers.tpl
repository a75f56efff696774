{{- define "slatewise.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "slatewise.labels" -}}
app.kubernetes.io/name: slatewise
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "slatewise.selector" -}}
app.kubernetes.io/name: slatewise
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "slatewise.account" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}{{ else if .Values.serviceAccount.create }}{{ include "slatewise.name" . }}{{ else }}default{{ end }}
{{- end }}

{{- define "slatewise.image" -}}
{{ .root.Values.image.repository }}-{{ .target }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Non-root, nothing writable but volumes: what every pod has in common. */}}
{{- define "slatewise.pod" -}}
serviceAccountName: {{ include "slatewise.account" . }}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "slatewise.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Settings of every process. */}}
{{- define "slatewise.env" -}}
- {name: SLATEWISE_TENANT, value: {{ .Values.tenant | quote }}}
- {name: SLATEWISE_LOG, value: {{ .Values.log | quote }}}
- {name: SLATEWISE_STATE, value: {{ .Values.state | quote }}}
- {name: SLATEWISE_BUNDLES, value: {{ .Values.bundles | quote }}}
- {name: SLATEWISE_EXPERIENCES, value: {{ .Values.experiences | quote }}}
- {name: SLATEWISE_PARTITIONS, value: {{ .Values.partitions | quote }}}
- {name: SLATEWISE_RETENTION_SECONDS, value: {{ int64 .Values.retentionSeconds | quote }}}
- {name: SLATEWISE_DERIVE, value: {{ .Values.derive | quote }}}
- {name: SLATEWISE_ESTIMATES, value: {{ .Values.estimates | quote }}}
- {name: SLATEWISE_DRIFT, value: {{ .Values.drift | quote }}}
- {name: SLATEWISE_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
{{- with .Values.otel }}
- {name: SLATEWISE_OTEL, value: {{ . | quote }}}
{{- end }}
- {name: SLATEWISE_KEYS, value: /etc/slatewise/keys}
- {name: SLATEWISE_DATA, value: /var/lib/slatewise}
- name: SLATEWISE_ADMIN_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: admin-key}}
- name: SLATEWISE_BUNDLE_KEY  # with it learners sign bundles, and scoring takes no unsigned one
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: bundle-key, optional: true}}
- name: SLATEWISE_KAFKA_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: kafka-password, optional: true}}
- name: SLATEWISE_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.secret }}, key: redis-password, optional: true}}
{{- end }}

{{- define "slatewise.mounts" -}}
- {name: keys, mountPath: /etc/slatewise/keys, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "slatewise.volumes" -}}
- name: keys
  secret:
    secretName: {{ .Values.secret }}
    defaultMode: 0440
    items:
      - {key: server.key, path: server.key}
      - {key: salt.{{ .Values.tenant }}, path: salt.{{ .Values.tenant }}}
- {name: tmp, emptyDir: {sizeLimit: 1Gi}}
{{- end }}

{{- define "slatewise.spread" -}}
{{- if .root.Values.topologySpread }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {app.kubernetes.io/instance: {{ $.root.Release.Name }}, app.kubernetes.io/component: {{ $.component }}}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "slatewise.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ . | quote }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end }}

{{/* Whose metrics the ops page reads. */}}
{{- define "slatewise.metrics" -}}
{{- $name := include "slatewise.name" . -}}
{{ $name }}-scoring-pods:8080,{{ $name }}-learning:8082{{ if .Values.experiences }},{{ $name }}-settle:8082{{ end }}
{{- end }}

{{/* Where the shards run. */}}
{{- define "slatewise.ray" -}}
{{- $name := include "slatewise.name" . -}}
{{- if eq .Values.learning.ray.mode "kuberay" -}}ray://{{ $name }}-ray-head-svc:10001
{{- else if eq .Values.learning.ray.mode "plain" -}}ray://{{ $name }}-ray-head:10001
{{- else -}}local{{- end -}}
{{- end }}
