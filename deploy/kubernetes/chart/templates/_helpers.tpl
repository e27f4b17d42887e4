{{/* Base of all names: the release's, with the chart's where that does not say it. */}}
{{- define "pg2kv.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 30 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of this release. */}}
{{- define "pg2kv.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pg2kv.labels" -}}
{{ include "pg2kv.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pg2kv
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pg2kv.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pg2kv.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pg2kv.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ printf "%s@%s" .repository .digest }}
{{- else -}}
{{ printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Why a checker's advice is not taken; the digest is the installation's to set. */}}
{{- define "pg2kv.skips" -}}
checkov.io/skip1: CKV_K8S_11=A limit on CPU throttles the daemon while it drains a backlog; the request reserves what it needs
{{- if not .Values.image.digest }}
checkov.io/skip2: CKV_K8S_43=The digest belongs to the installation, which sets image.digest
{{- end }}
{{- if ne .Values.image.pullPolicy "Always" }}
checkov.io/skip3: CKV_K8S_15=The installation has set image.pullPolicy
{{- end }}
{{- end -}}

{{/* What every pod of ours has in common, up to its containers. */}}
{{- define "pg2kv.podBasics" -}}
serviceAccountName: {{ include "pg2kv.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "pg2kv.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Variables win over the file, so no file can break what the manifest relies on. */}}
{{- define "pg2kv.secretEnv" -}}
- name: PG2KV__POSTGRES__PASSWORD_FILE
  value: /run/secrets/pg2kv/password
- name: PG2KV__KV__API_TOKEN_FILE
  value: /run/secrets/pg2kv/api-token
{{- end -}}

{{/* Directories, not single files (subPath): only those follow a change. */}}
{{- define "pg2kv.mounts" -}}
- name: config
  mountPath: /etc/pg2kv
  readOnly: true
- name: secrets
  mountPath: /run/secrets/pg2kv
  readOnly: true
{{- with .extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes a list: the context of the release, and the instance. */}}
{{- define "pg2kv.volumes" -}}
{{- $top := index . 0 -}}
{{- $instance := index . 1 -}}
- name: config
  configMap:
    name: {{ include "pg2kv.fullname" $top }}-{{ $instance.name }}
- name: secrets
  secret:
    secretName: {{ $instance.existingSecret }}
    defaultMode: 0440
{{- with $instance.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A pod that runs `pg2kv check` once. Takes a list: context, instance. */}}
{{- define "pg2kv.checkPod" -}}
{{- $top := index . 0 -}}
{{- $instance := index . 1 -}}
restartPolicy: Never
{{ include "pg2kv.podBasics" $top }}
containers:
  - name: check
    image: {{ include "pg2kv.image" $top }}
    imagePullPolicy: {{ $top.Values.image.pullPolicy }}
    args: [check, --config, /etc/pg2kv/pg2kv.toml]
    env:
      {{- include "pg2kv.secretEnv" $top | nindent 6 }}
      {{- with $instance.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      requests:
        cpu: 50m
        memory: 32Mi
      limits:
        memory: 128Mi
    securityContext:
      {{- include "pg2kv.containerSecurity" $top | nindent 6 }}
    volumeMounts:
      {{- include "pg2kv.mounts" $instance | nindent 6 }}
volumes:
  {{- include "pg2kv.volumes" . | nindent 2 }}
{{- end -}}
